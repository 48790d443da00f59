"""The rules of generation configs: every key is known, and each acts, or is refused, as in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.generation import LogitsProcessorList
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from scale_export.core.errors import UserError
from scale_export.device.package import open_package
from scale_export.device.rules import (
    HONOURED,
    IGNORED,
    REFUSED,
    GenerationRules,
    check_vocabulary,
    read_rules,
    rules_of,
)
from scale_export.model.asking import GREEDY, answer_questions, rules_of_model
from scale_export.model.base import open_base
from scale_export.model.hooks import attach
from scale_export.questions import load_questions
from tests.helpers.cli import run
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on

VOCABULARY, ENDS = 12, (2, 5)


class Words:
    """A tokenizer of which the end token is all that is asked for."""

    eos_token_id: int | None = 2


def rules(**values: Any) -> GenerationRules:
    return rules_of(values, Words(), "there")  # type: ignore[arg-type]


def test_every_key_of_transformers_is_known_once() -> None:
    """A key that a new transformers brings must be decided on."""
    keys = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert keys == {*HONOURED, *REFUSED, *IGNORED}
    assert len(keys) == len(HONOURED) + len(REFUSED) + len(IGNORED)
    assert GREEDY.keys() <= {*IGNORED, "num_beams"}


def test_what_transformers_takes_where_nothing_is_set_does_nothing() -> None:
    assert rules(**GenerationConfig._get_default_generation_params()) == GenerationRules(end_tokens=(2,))


RULES: dict[str, tuple[dict[str, Any], Any]] = {
    "penalty": ({"repetition_penalty": 1.7}, lambda start: RepetitionPenaltyLogitsProcessor(1.7)),
    "reward": ({"repetition_penalty": 0.4}, lambda start: RepetitionPenaltyLogitsProcessor(0.4)),
    "no word twice": ({"no_repeat_ngram_size": 1}, lambda start: NoRepeatNGramLogitsProcessor(1)),
    "no pair twice": ({"no_repeat_ngram_size": 2}, lambda start: NoRepeatNGramLogitsProcessor(2)),
    "no triple twice": ({"no_repeat_ngram_size": 3}, lambda start: NoRepeatNGramLogitsProcessor(3)),
    "bad words": (
        {"bad_words_ids": [[7], [2], [1, 3], [1, 0, 6]]},
        lambda start: NoBadWordsLogitsProcessor([[7], [2], [1, 3], [1, 0, 6]], [*ENDS]),
    ),
    "least length": ({"min_length": 9}, lambda start: MinLengthLogitsProcessor(9, [*ENDS])),
    "least answer": (
        {"min_new_tokens": 2},
        lambda start: MinNewTokensLengthLogitsProcessor(start, 2, [*ENDS]),
    ),
    "suppressed": ({"suppress_tokens": [1, 8]}, lambda start: SuppressTokensLogitsProcessor([1, 8])),
    "suppressed first": (
        {"begin_suppress_tokens": [0, 3]},
        lambda start: SuppressTokensAtBeginLogitsProcessor([0, 3], start),
    ),
}


TOGETHER = ("penalty", "no pair twice", "bad words", "least answer", "suppressed", "suppressed first")


@pytest.mark.parametrize("names", [*((name,) for name in RULES), TOGETHER], ids=" ".join)
def test_rules_choose_what_transformers_processors_choose(names: tuple[str, ...]) -> None:
    chosen = [RULES[name] for name in names]
    merged = {key: value for values, _ in chosen for key, value in values.items()}
    ours, rng, moved = rules(eos_token_id=5, **merged), np.random.default_rng(0), 0
    assert ours.end_tokens == ENDS and set(ours.acting) == set(merged)
    for _ in range(600):
        prompt, answer = rng.integers(0, 4, rng.integers(1, 16)), rng.integers(0, 4, rng.integers(0, 5))
        logits = rng.standard_normal(VOCABULARY).astype(np.float32)
        said = torch.tensor([[*prompt.tolist(), *answer.tolist()]])
        processors = LogitsProcessorList([build(len(prompt)) for _, build in chosen])
        due = int(processors(said, torch.tensor(logits)[None])[0].argmax())
        assert ours.choose(logits, prompt.tolist(), answer.tolist()) == due
        moved += due != logits.argmax()
    assert moved >= 10, "the rule acted"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_strings", ["."]), ("sequence_bias", [[[3], -1.0]]), ("encoder_repetition_penalty", 1.2),
        ("encoder_no_repeat_ngram_size", 2), ("forced_eos_token_id", 2), ("guidance_scale", 1.5),
        ("exponential_decay_length_penalty", [3, 1.1]), ("token_healing", True), ("num_beams", 4),
        ("watermarking_config", {"bias": 2.0}), ("num_beam_groups", 2), ("penalty_alpha", 0.6),
        ("constraints", [1]), ("force_words_ids", [[1]]), ("dola_layers", "low"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^there sets {name}, .*take it out of there"):
        rules(**{name: value})
    assert name in REFUSED
    for idle in (None, *REFUSED[name]):
        assert rules(**{name: idle}) == GenerationRules(end_tokens=(2,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", "2"), ("eos_token_id", [2, None]), ("suppress_tokens", 3), ("suppress_tokens", [True]),
        ("begin_suppress_tokens", "ab"), ("min_length", -1), ("min_new_tokens", 1.5),
        ("no_repeat_ngram_size", True), ("repetition_penalty", 2), ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")), ("repetition_penalty", float("inf")), ("bad_words_ids", []),
        ("bad_words_ids", [[]]), ("bad_words_ids", [3]), ("bad_words_ids", [[-1]]), ("bad_words_ids", [[2]]),
    ],
)  # fmt: skip
def test_values_that_are_none_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^there sets {name} to .*correct it$"):
        rules(**{name: value})


def test_words_beyond_the_vocabulary_and_a_missing_end_are_refused() -> None:
    beyond = rules(bad_words_ids=[[1], [3, VOCABULARY]])
    check_vocabulary(beyond, VOCABULARY + 1)
    with pytest.raises(UserError, match="holds token 12, and its vocabulary ends at 11"):
        check_vocabulary(beyond, VOCABULARY)
    endless = Words()
    endless.eos_token_id = None
    with pytest.raises(UserError, match="names no end token"):
        rules_of({}, endless, "there")  # type: ignore[arg-type]


def test_tokens_beyond_the_logits_are_suppressed_for_nothing() -> None:
    ours = rules(suppress_tokens=[-1, VOCABULARY, 40])
    assert ours.choose(np.arange(VOCABULARY, dtype=np.float32), [1], []) == VOCABULARY - 1


def edited(directory: Path, name: str, change: Any) -> None:
    path = directory / name
    table = json.loads(path.read_text()) if path.exists() else {}
    change(table)
    path.write_text(json.dumps(table))


PLACES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "as saved": ({}, ()),
    "one": ({"generation_config.json": {"eos_token_id": 7}}, (7,)),
    "several": ({"generation_config.json": {"eos_token_id": [7, 9]}}, (7, 9)),
    "in the generation config alone": (
        {
            "generation_config.json": {"eos_token_id": 7, "suppress_tokens": [4]},
            "config.json": {"eos_token_id": 11, "suppress_tokens": [5]},
        },
        (7,),
    ),
    "unset there": (
        {"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 11}},
        (),
    ),
    "in the config": (
        {"generation_config.json": None, "config.json": {"eos_token_id": [11, 12]}},
        (11, 12),
    ),
    "in the text model's": (
        {
            "generation_config.json": None,
            "config.json": {"eos_token_id": None},
            "text_config": {"eos_token_id": 13, "min_length": 3, "suppress_tokens": [6]},
        },
        (13,),
    ),
    "in both": (
        {
            "generation_config.json": None,
            "config.json": {"eos_token_id": 11},
            "text_config": {"eos_token_id": 13, "bad_words_ids": [[8]]},
        },
        (11,),
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_rules_are_read_where_transformers_reads_them(base_of: Any, tmp_path: Path, place: str) -> None:
    directory = Path(shutil.copytree(base_of("llava", "llama").directory, tmp_path / "base"))
    changes, ends = PLACES[place]
    for name, values in changes.items():
        if values is None:
            (directory / name).unlink(missing_ok=True)
        elif name == "text_config":
            edited(directory, "config.json", lambda table, v=values: table["text_config"].update(v))
        else:
            edited(directory, name, lambda table, v=values: table.update(v))
    base = open_base(str(directory))
    loaded = AutoModelForImageTextToText.from_pretrained(directory)
    found = read_rules(directory, base.processor.tokenizer)
    assert found == rules_of_model(loaded, base.processor) == base.rules
    assert found.end_tokens[0] == base.processor.tokenizer.eos_token_id
    own = base.processor.tokenizer.eos_token_id
    assert found.end_tokens == tuple(dict.fromkeys((own, *ends)))


ACTING = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "min_length": 30,
    "suppress_tokens": [30, 31, 32],
    "begin_suppress_tokens": [40, 41],
    "bad_words_ids": [[50], [60, 61]],
}


@pytest.fixture(scope="module")
def ruled(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The random LLaVA under every rule; what it would say first without them is what they forbid."""
    directory = Path(
        shutil.copytree(base_of("llava", "llama").directory, tmp_path_factory.mktemp("ruled") / "base")
    )
    base = open_base(str(directory))
    questions = load_questions("gridworld", "calibration", limit=3)
    free = answer_questions(base.model, base.processor, questions, max_new_tokens=8)
    firsts = sorted({answer.token_ids[0] for answer in free})
    values = ACTING | {"begin_suppress_tokens": firsts, "bad_words_ids": [[free[0].token_ids[1]], [60, 61]]}
    edited(directory, "generation_config.json", lambda table: table.update(values))
    return open_base(str(directory)), free


@pytest.mark.parametrize("target", ["cpu", "coreai"])
def test_packages_answer_by_the_rules_as_pytorch_does(ruled: Any, target: str, tmp_path: Path) -> None:
    base, free = ruled
    coefficients = random_coefficients(base)
    file = saved(coefficients, tmp_path)
    assert set(base.rules.acting) == set(ACTING)
    questions = load_questions("gridworld", "calibration", limit=3)
    with attach(base.model, coefficients):
        due = answer_questions(base.model, base.processor, questions, max_new_tokens=8)
        alone = [answer_questions(base.model, base.processor, [q], max_new_tokens=8)[0] for q in questions]
    assert [answer.token_ids for answer in due] == [answer.token_ids for answer in alone]
    assert all(a.token_ids[0] != b.token_ids[0] for a, b in zip(due, free, strict=True))
    outcome = fold_on(base, file, target, out=tmp_path / "out", precision="float32", evaluation="none")
    agreed = outcome.report.answer_agreement
    assert outcome.passed, outcome.parity
    assert agreed is not None and agreed.outside_near_ties == 1
    assert "rules of generation elsewhere" in {found.subject for found in outcome.report.not_checked}
    assert [said for said in outcome.plan.decisions if "min_length, suppress_tokens" in said]
    opened = open_package(outcome.path)
    assert opened.responder.rules == base.rules
    assert opened.answer(questions[0].images, questions[0].prompt, max_new_tokens=8) == due[0].text


def test_a_refused_rule_is_one_sentence_before_a_weight_is_read(
    base_of: Any, coefficient_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(base_of("llava", "llama").directory, tmp_path / "base"))
    edited(directory, "generation_config.json", lambda table: table.update(stop_strings=["."]))
    out = tmp_path / "out"
    words = ["fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--model", str(directory)]
    assert run(*words, "--out", str(out), "--dry-run") == 2
    said = capsys.readouterr().err
    assert "sets stop_strings" in said and "Traceback" not in said and not out.exists()
