"""Question sets read from a user's disk: the real formats, the splits, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from scale_export.core.errors import UserError
from scale_export.core.resources import resource_dir
from scale_export.core.words import Split
from scale_export.questions import dataset_names, load_questions, public_name
from scale_export.questions.question import StoredImage, digest
from scale_export.questions.scoring import OFFICIAL
from scale_export.questions.sets._whatsup import bare, offered
from scale_export.questions.sets.spatialeval import options_in
from tests.helpers import questions as made

SPLITS: tuple[Split, ...] = get_args(Split)
MAKERS: dict[str, Callable[[Path], Path]] = {
    "spatialeval": made.spatialeval_parquet,
    "coco_qa": lambda d: made.whatsup(d, "coco_qa"),
    "vg_qa": lambda d: made.whatsup(d, "vg_qa", questions=False),
    "coco_qa_2015": made.coco_qa_2015,
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"{request.param}:{MAKERS[request.param](tmp_path_factory.mktemp('set') / 'here')}"


def test_the_sets_are_found_and_helpers_are_none():
    assert set(dataset_names()) == {"gridworld", "atlas", "jsonl", *MAKERS}


def test_an_instance_lies_in_one_split_and_every_question_in_some(spec: str):
    by_split = {split: load_questions(spec, split) for split in SPLITS}
    instances = [{q.instance for q in questions} for questions in by_split.values()]
    assert sum(map(len, instances)) == len(set().union(*instances))
    everything = [q.id for questions in by_split.values() for q in questions]
    total = {"spatialeval": 120, "coco_qa": 30, "vg_qa": 30, "coco_qa_2015": 80}[spec.partition(":")[0]]
    assert len(everything) == len(set(everything)) == total
    assert by_split["test"] and by_split["train"]


def test_the_order_is_fixed_and_a_limit_takes_the_first(spec: str):
    whole = load_questions(spec, "test")
    assert [q.id for q in load_questions(spec, "test", limit=3)] == [q.id for q in whole[:3]]
    assert digest(whole) == digest(load_questions(spec, "test")) != digest(whole[1:])


def test_every_question_has_a_rule_a_picture_and_its_answer_among_its_options(spec: str):
    for q in load_questions(spec, "test"):
        assert q.rule in OFFICIAL and q.topic and q.prompt
        assert [type(picture) for picture in q.pictures] == [StoredImage] and q.images[0].mode == "RGB"
        assert not q.options or q.answer.lower() in [option.lower() for option in q.options]


def test_the_description_lists_the_topics(spec: str):
    name = spec.partition(":")[0]
    described = tomllib.loads((resource_dir("calib") / name / "set.toml").read_text())
    assert described["name"] == name
    for q in load_questions(spec, "test"):
        assert described["topics"][q.topic] == q.kind


def test_reports_carry_no_place_on_a_disk(spec: str):
    assert public_name(spec) == spec.partition(":")[0]
    assert public_name("gridworld:seed=3") == "gridworld:seed=3"


def test_a_missing_directory_is_refused(spec: str):
    name = spec.partition(":")[0]
    with pytest.raises(UserError, match="name its directory"):
        load_questions(name, "test")
    with pytest.raises(UserError, match="no directory"):
        load_questions(f"{name}:nowhere", "test")


def test_an_empty_directory_is_refused(spec: str, tmp_path: Path):
    with pytest.raises(UserError):
        load_questions(f"{spec.partition(':')[0]}:{tmp_path}", "test")


def test_parquet_and_an_export_give_the_same_questions(tmp_path: Path):
    parquet = load_questions(f"spatialeval:{made.spatialeval_parquet(tmp_path / 'hub')}", "test")
    exported = load_questions(f"spatialeval:{made.spatialeval_export(tmp_path / 'export')}", "test")
    assert digest(parquet) == digest(exported)
    first = parquet[0]
    record = next(r for r in made.spatialeval_records() if r["id"] == first.id)
    assert (first.prompt, first.answer) == (record["text"], record["oracle_answer"])
    assert first.instance == ".".join(first.id.split(".")[::2][:2])
    expected = made.picture(int(first.id.split(".")[2]))
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(expected))


def test_the_only_configuration_is_found_and_one_of_several_must_be_named(tmp_path: Path):
    made.spatialeval_parquet(tmp_path, "tqa")
    questions = load_questions(f"spatialeval:{tmp_path},whole", "test")
    assert len(questions) == 120 and all(q.pictures == () for q in questions)
    made.spatialeval_parquet(tmp_path, "vtqa")
    with pytest.raises(UserError, match="tqa, vtqa: name one"):
        load_questions(f"spatialeval:{tmp_path}", "test")


def test_the_hubs_converted_branch_is_read_too(tmp_path: Path):
    folder = made.spatialeval_parquet(tmp_path / "main")
    other = tmp_path / "converted/vqa"
    (other / "test").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(other / f"test/{number:04}.parquet")
    assert len(load_questions(f"spatialeval:{tmp_path / 'converted'},whole", "test")) == 120


def test_the_configurations_of_one_instance_share_a_split(tmp_path: Path):
    for name in ("tqa", "vqa", "vtqa"):
        made.spatialeval_parquet(tmp_path, name)
    asked = [load_questions(f"spatialeval:{tmp_path}/{name}", "test") for name in ("tqa", "vqa", "vtqa")]
    assert len({tuple(q.instance for q in questions) for questions in asked}) == 1


def test_the_whole_set_can_be_the_test_split(tmp_path: Path):
    spec = f"spatialeval:{made.spatialeval_parquet(tmp_path)},whole"
    assert len(load_questions(spec, "test")) == 120
    assert load_questions(spec, "train") == []
    assert public_name(spec) == "spatialeval"


def test_options_are_the_lettered_lines_at_the_end():
    assert options_in(made.MAP) == ("Northeast", "Northwest", "Southwest", "Southeast")
    assert options_in("A. B. Smith's shop\nWhere?\nA. left\nB. right.") == ("left", "right")
    assert options_in("A. one line") == options_in("A. x\nC. y") == options_in("open?") == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "chess.vqa.0.0"}, "spatialmap.vqa.2000.0"),
        ({"id": "spatialmap.vqa.0.7"}, "spatialmap.vqa.2000.0"),
        ({"oracle_answer": None}, "oracle_answer"),
        ({"text": 3}, "text"),
        ({"image": "images/none.png"}, "there is no picture"),
        ({"image": "../images/none.png"}, "none inside"),
        ({"image": "/etc/hostname"}, "none inside"),
        ({"image": {"bytes": "x"}}, "not a path"),
        ({"image": None}, "has no picture"),
    ],
)
def test_a_wrong_record_of_an_export_is_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    directory = made.spatialeval_export(tmp_path / "export", **changes)
    with pytest.raises(UserError, match=words):
        load_questions(f"spatialeval:{directory},whole", "test")


def test_parquet_files_of_another_set_or_damaged_ones_are_refused(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'id'"):
        load_questions(f"spatialeval:{tmp_path}", "test")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load_questions(f"spatialeval:{tmp_path}", "test")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = made.spatialeval_parquet(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"scale-export\[data\]"):
        load_questions(f"spatialeval:{folder}", "test")


def test_a_picture_that_is_none_is_refused_when_it_is_looked_at(tmp_path: Path):
    folder = made.spatialeval_parquet(tmp_path, image={"bytes": b"no png", "path": "x.png"})
    with pytest.raises(UserError, match="cannot be read as a picture"):
        _ = load_questions(f"spatialeval:{folder}", "test", limit=1)[0].image


def test_adaptvis_questions_come_without_their_chat_words(tmp_path: Path):
    questions = load_questions(f"coco_qa:{made.whatsup(tmp_path)},whole", "test")
    assert {q.prompt for q in questions} == {
        "Where is the dog in the photo? Answer with left, right, top or bottom."
    }
    assert {q.options for q in questions} == {("left", "right", "top", "bottom")}
    assert {q.answer for q in questions} == {"Left", "Right"} and {q.rule for q in questions} == {"contains"}
    by_id = {q.id: q for q in questions}
    assert by_id["coco_qa_one_obj.0"].answer == "Right" and by_id["coco_qa_one_obj.1"].answer == "Left"
    assert by_id["coco_qa_one_obj.5"].instance == "coco_qa.102"


def test_captions_alone_become_a_choice_whose_order_varies(tmp_path: Path):
    questions = load_questions(f"vg_qa:{made.whatsup(tmp_path, 'vg_qa', questions=False)},whole", "test")
    assert {q.options.index(q.answer) for q in questions} == {0, 1}
    assert all(f"A. {q.options[0]}\nB. {q.options[1]}" in q.prompt for q in questions)
    assert {q.rule for q in questions} == {"captions"}


def test_questions_are_bare_and_what_they_offer_is_read():
    assert (
        bare("<image>\nUSER:  Where is it? \nAnswer with left.\n\nASSISTANT:")
        == "Where is it? \nAnswer with left."
    )
    assert offered("Answer with left, right, front, behind, top, or bottom.", "Above") == (
        "left", "right", "front", "behind", "top", "bottom", "above",
    )  # fmt: skip
    assert offered("Where is it?", "Left") == ()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("coco_qa_one_obj.json", "[[1, 2]]", "true caption"),
        ("coco_qa_one_obj.json", "{}", "not a list"),
        ("coco_qa_one_obj.json", "[[", "not JSON"),
        ("coco_qa_one_obj.json", '[["../x", "a", "b"]]', "true caption"),
        (
            "prompts/COCO_QA_one_obj_with_answer_four_options.jsonl",
            json.dumps({"id": 0, "question": "?", "answer": []}),
            "record 1",
        ),
    ],
)
def test_wrong_files_of_whatsup_are_refused(tmp_path: Path, file: str, content: str, words: str):
    directory = made.whatsup(tmp_path)
    (directory / file).write_text(content)
    with pytest.raises(UserError, match=words):
        load_questions(f"coco_qa:{directory},whole", "test")


def test_a_missing_photo_is_refused(tmp_path: Path):
    directory = made.whatsup(tmp_path)
    next((directory / "val2017").iterdir()).unlink()
    with pytest.raises(UserError, match="there is no picture"):
        load_questions(f"coco_qa:{directory},whole", "test")


def test_the_older_coco_qa_keeps_its_published_test_split(tmp_path: Path):
    spec = f"coco_qa_2015:{made.coco_qa_2015(tmp_path)}"
    test = load_questions(spec, "test")
    assert len(test) == 40 and all(q.id.startswith("coco_qa_2015.test.") for q in test)
    assert {(q.topic, q.kind) for q in test} == {
        ("object", "other"), ("number", "other"), ("colour", "other"), ("location", "spatial"),
    }  # fmt: skip
    with pytest.raises(UserError, match="leave out"):
        load_questions(f"{spec},whole", "test")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("answers.txt", "white\n", "numbers of lines"),
        ("types.txt", "7\n" * 40, "type '7'"),
        ("img_ids.txt", "x\n" * 40, "image 'x'"),
    ],
)
def test_files_of_the_older_coco_qa_that_dont_fit_are_refused(
    tmp_path: Path, file: str, text: str, words: str
):
    directory = made.coco_qa_2015(tmp_path)
    (directory / "test" / file).write_text(text)
    with pytest.raises(UserError, match=words):
        load_questions(f"coco_qa_2015:{directory}", "test")
