"""What a run learns from and replays is decided, and said, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from scale_export.core.errors import UserError
from scale_export.questions import load_questions
from scale_export.training import run as run_module
from scale_export.training.data import training_questions
from scale_export.training.options import REPLAY, TrainOptions
from tests.helpers import questions as made
from tests.helpers.cli import last_json, run
from tests.helpers.models import FAMILIES


@pytest.fixture(scope="module")
def spatial_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"spatialeval:{made.spatialeval_export(tmp_path_factory.mktemp('sets') / 'spatialeval')}"


def test_a_set_with_both_kinds_replays_its_own() -> None:
    chosen = training_questions(TrainOptions(limit=48))
    assert chosen.options.replay == REPLAY and "30% of each batch are the set's own" in chosen.decision
    assert {q.kind for q in chosen.splits["train"]} == {"spatial", "other"}


def test_a_set_of_spatial_questions_works_at_the_defaults_and_says_so(spatial_only: str) -> None:
    chosen = training_questions(TrainOptions(data=spatial_only))
    assert chosen.options.replay == 0 and "Nothing is replayed" in chosen.decision
    assert "--replay-data" in chosen.decision


def test_others_come_from_another_set(spatial_only: str) -> None:
    options = TrainOptions(data=spatial_only, replay_data="gridworld", limit=20)
    chosen = training_questions(options)
    assert chosen.options.replay == REPLAY and "questions of gridworld (20 to train on)" in chosen.decision
    for found in chosen.splits.values():
        kinds = [(q.kind, q.topic.partition(".")[0]) for q in found]
        assert sum(kind == "other" for kind, _ in kinds) == 20
        assert all(kind == "other" or topic in made.ASKED for kind, topic in kinds), kinds


def test_a_sets_own_others_give_way_to_those_of_the_other_set() -> None:
    chosen = training_questions(TrainOptions(data="gridworld", replay_data="atlas", limit=30))
    asked = [(q.kind, q.prompt) for q in chosen.splits["train"]]
    expected = [*load_questions("gridworld", "train", limit=30), *load_questions("atlas", "train", limit=200)]
    spatial = [(q.kind, q.prompt) for q in expected[:30] if q.kind == "spatial"]
    others = [(q.kind, q.prompt) for q in expected[30:] if q.kind == "other"]
    assert asked == [*spatial, *others[:30]]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"replay": 0.3}, r"--replay 0\.3 is refused: .* --replay-data, or give --replay 0"),
        ({"replay_data": "{spatial}"}, "--replay-data .* has no non-spatial questions in its train split"),
        ({"replay_data": "gridworld", "replay": 0.0}, "beside --replay 0"),
        ({"replay_data": "gridwrld"}, "did you mean 'gridworld'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(asked: dict[str, str], words: str, spatial_only: str) -> None:
    asked = {name: spatial_only if value == "{spatial}" else value for name, value in asked.items()}
    with pytest.raises(UserError, match=words):
        training_questions(TrainOptions(data=spatial_only, **asked))  # type: ignore[arg-type]


def test_refusals_come_before_a_model_is_looked_for(
    spatial_only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command line trains on such a set at its defaults, saying what it replays."""
    command = ("train", str(tmp_path / "model"), "--out", str(tmp_path / "s.pt"), "--data", spatial_only)
    assert run(*command, "--replay", "0.3") == 2
    assert "--replay-data" in capsys.readouterr().err
    assert run(*command) == 2
    said = capsys.readouterr().err
    assert said.index("Nothing is replayed") < said.index("there is no base model")
    assert "--model" not in said
    FAMILIES["llava"](directory=tmp_path / "model", max_position_embeddings=2048)
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "encode_examples", lambda *args: pytest.fail("a model was loaded"))
        for option, words in (
            ("--layers", "cannot train layer 7"),
            ("--select", "--select 7 is refused: only 3"),
        ):
            assert run(*command, option, "7") == 2
            assert words in capsys.readouterr().err
    quick = ("--steps", "1", "--batch-size", "2", "--limit", "4", "--json")
    assert run(*command, *quick) == 0
    assert last_json(capsys)["options"]["replay"] == 0
