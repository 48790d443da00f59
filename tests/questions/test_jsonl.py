"""Question sets of one's own: what a line may hold, and one sentence with its number for whatever is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.core.errors import UserError
from scale_export.questions import load_questions, public_name
from scale_export.questions.question import Question, Turn, digest
from scale_export.questions.scoring import is_right
from scale_export.questions.sets import _lines
from tests.helpers.cli import run
from tests.helpers.pictures import picture

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/tiny_vlm"
GOOD: dict[str, Any] = {"id": "a", "image": "pictures/1.png", "question": "where is it?", "answer": "left"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures, and one outside it."""
    inside = tmp_path / "set"
    (inside / "pictures").mkdir(parents=True)
    for number in (1, 2, 3):
        picture(number).save(inside / f"pictures/{number}.png")
    picture(4).save(tmp_path / "outside.png")
    return inside


def written(folder: Path, *lines: dict[str, Any]) -> str:
    """The set's name, of a file with these lines."""
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return f"jsonl:{file}"


def only(folder: Path, **fields: Any) -> Question:
    """The question of a file with one line; None takes a field out."""
    line = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
    (question,) = load_questions(f"{written(folder, line)},whole", "test")
    return question


def test_a_line_becomes_a_question(folder: Path):
    question = only(folder, kind="other", topic="place", options=["Left", "right"], split="test")
    assert (question.id, question.prompt, question.answer) == ("a", "where is it?", "left")
    assert (question.kind, question.topic, question.rule) == ("other", "place", "option")
    np.testing.assert_array_equal(np.asarray(question.images[0]), np.asarray(picture(1)))
    assert only(folder).kind == "spatial" and only(folder, image=None).images == []


def test_several_pictures_and_turns_come_in_their_order(folder: Path):
    shown = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which is larger?"}]
    chat = [
        {"role": "user", "content": shown},
        {"role": "assistant", "content": "the first"},
        {"role": "user", "content": "and where is it?"},
    ]
    names = ["pictures/2.png", "pictures/1.png"]
    asked = only(folder, image=None, images=names, question=None, messages=chat)
    assert asked.earlier == (Turn(asked="which is larger?", answered="the first"),)
    assert (asked.prompt, asked.answer) == ("and where is it?", "left")
    for found, seed in zip(asked.images, (2, 1), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture(seed)))
    ended = [*chat, {"role": "assistant", "content": "on the left"}]
    answered = only(folder, image=None, images=names, question=None, answer=None, messages=ended)
    assert (answered.prompt, answered.answer, answered.earlier) == (
        asked.prompt,
        "on the left",
        asked.earlier,
    )
    alone = only(folder, image=None, images=names)
    assert len({digest([question]) for question in (asked, answered, alone)}) == 3


def test_splits_are_named_or_follow_from_the_pictures(folder: Path):
    named = [
        {**GOOD, "id": f"{split}{number}", "split": split}
        for split in ("train", "val", "test")
        for number in range(3)
    ]
    spec = written(folder, *named)
    ids = {
        split: {q.id[:-1] for q in load_questions(spec, split)}  # type: ignore[arg-type]
        for split in ("train", "calibration", "validation", "test")
    }
    assert ids == {"train": {"train"}, "calibration": {"train"}, "validation": {"val"}, "test": {"test"}}
    spec = written(folder, *named, {**GOOD, "id": "c", "split": "calib"})
    assert [q.id for q in load_questions(spec, "calibration")] == ["c"]
    assert len(load_questions(f"{spec},whole", "test")) == 10 and not load_questions(f"{spec},whole", "train")
    words = [{**GOOD, "id": str(number), "image": None} for number in range(200)]
    spec = written(folder, *({k: v for k, v in line.items() if v is not None} for line in words))
    sizes = [len(load_questions(spec, split)) for split in ("train", "calibration", "validation", "test")]  # type: ignore[arg-type]
    assert sum(sizes) == 200 and sizes[0] > sizes[3] > sizes[2] > sizes[1] > 0
    pair = [{**GOOD, "id": str(number)} for number in range(9)]  # about one picture: one split
    spec = written(folder, *pair)
    found = [len(load_questions(spec, split)) for split in ("train", "calibration", "validation", "test")]  # type: ignore[arg-type]
    assert sorted(found) == [0, 0, 0, 9]


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({}, ["left", " Left. "], ["on the left", "right"]),
        ({"scoring": "contains"}, ["It is on the LEFT."], ["cleft", "right"]),
        (
            {"scoring": "number", "answer": "3"},
            ["There are three.", "3 of 3"],
            ["13", "3 or 4", "none", "3.5"],
        ),
        ({"scoring": "number", "answer": "-1,200.5"}, ["about -1200.50"], ["1200.5"]),
        (
            {"options": ["left", "right"]},
            ["A", "(a) left", "the left one"],
            ["B", "left or right", "A. right"],
        ),
        ({"answers": ["left", "west"], "answer": None}, ["west", "left"], ["east"]),
        ({"answers": ["left", "west"], "answer": None, "scoring": "contains"}, ["to the west"], ["western"]),
    ],
)
def test_the_line_says_what_is_right_whatever_the_scoring(
    folder: Path, fields: dict[str, Any], right: list[str], wrong: list[str]
):
    question = only(folder, **fields)
    for scoring in ("strict", "official"):
        assert [is_right(given, question, scoring) for given in right] == [True] * len(right)  # type: ignore[arg-type]
        assert [is_right(given, question, scoring) for given in wrong] == [False] * len(wrong)  # type: ignore[arg-type]


def raw(text: bytes | str) -> Callable[[Path], None]:
    """A file of these bytes."""
    return lambda file: (file.write_bytes(text if isinstance(text, bytes) else text.encode()), None)[1]


def lines(*changes: dict[str, Any]) -> Callable[[Path], None]:
    """A good first line, then one for each of ``changes``; a field that is None is left out."""
    made = [GOOD, *({**GOOD, "id": f"b{number}", **change} for number, change in enumerate(changes))]
    kept = [{name: value for name, value in line.items() if value is not None} for line in made]
    return raw("".join(json.dumps(line) + "\n" for line in kept))


def linked(file: Path) -> None:
    lines({"image": "pictures/link.png"})(file)
    (file.parent / "pictures/link.png").symlink_to(file.parents[1] / "outside.png")


def chat(*roles: str, **fields: Any) -> Callable[[Path], None]:
    said = [{"role": role, "content": "why?"} for role in roles]
    return lines({"question": None, "messages": said, **fields})


USER = {"role": "user"}
SHOWN = [{"type": "image"}, {"type": "text", "text": "?"}]
GOOD_LINE = json.dumps(GOOD)

MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "bad JSON": (raw(GOOD_LINE + '\n{"id": "b",\n'), "line 2 is not JSON"),
    "not an object": (raw(GOOD_LINE + '\n["b"]\n'), "line 2 holds a list, not an object"),
    "nested": (raw(GOOD_LINE + "\n" + '{"id":' * 100_000 + "\n"), "line 2 is nested too deeply"),
    "a field twice": (raw('{"id": "a", "id": "b"}\n'), "line 1 has the field 'id' twice"),
    "NaN": (lines({"topic": float("nan")}), "line 2 holds NaN"),
    "no id": (lines({"id": None}), "line 2 has no 'id'"),
    "no question": (lines({"question": None}), "neither 'question' nor 'messages'"),
    "no answer": (lines({"answer": None}), "line 2 has no 'answer'"),
    "a number for a text": (lines({}, {"answer": 3}), "line 3 has a number for 'answer'"),
    "an unknown field": (lines({"awnser": "left"}), "unknown field 'awnser' (did you mean 'answer'?)"),
    "an id twice": (lines({"id": "a"}), "line 2 has the id 'a' of line 1"),
    "a missing picture": (lines({"image": "pictures/9.png"}), "'pictures/9.png', which is not in"),
    "a picture above": (lines({"image": "../outside.png"}), "'../outside.png', which is no path below"),
    "an absolute path": (lines({"image": "/etc/hostname"}), "'/etc/hostname', which is no path below"),
    "a link out": (linked, "'pictures/link.png', a link that leads out"),
    "a folder for a picture": (lines({"image": "pictures"}), "'pictures', which is no file"),
    "nested pictures": (lines({"image": None, "images": [["pictures/1.png"]]}), "has a list for 'images', item 1"),
    "no pictures in the list": (lines({"image": None, "images": []}), "has 0 in its list 'images'"),
    "both picture fields": (lines({"images": ["pictures/1.png"]}), "has both 'image' and 'images'"),
    "other options": (lines({"options": ["above", "below"]}), "the answer 'left', which is none of its options"),
    "a letter for an option": (lines({"options": ["left", "right"], "answer": "A"}), "write an option in full"),
    "one option": (lines({"options": ["left"]}), "write 2 or more"),
    "an option twice": (lines({"options": ["left", "left"]}), "'left' twice in 'options'"),
    "an unknown kind": (lines({"kind": "spacial"}), "unknown kind 'spacial' (did you mean 'spatial'?)"),
    "an unknown split": (lines({"split": "dev"}), "unknown split 'dev'"),
    "a split in one line only": (lines({"split": "test"}), "line 2 names a split and line 1 does not"),
    "an unknown scoring": (lines({"scoring": "exactly"}), "unknown scoring 'exactly' (did you mean 'exact'?)"),
    "a scoring without options": (lines({"scoring": "option"}), "'option' and no options"),
    "a scoring without a number": (lines({"scoring": "number"}), "'number' and the answer 'left'"),
    "an empty file": (raw("\n \n"), "holds no question"),
    "a byte order mark": (raw(b"\xef\xbb\xbf" + GOOD_LINE.encode()), "line 1 begins with a byte order mark"),
    "invalid UTF-8": (raw(GOOD_LINE.encode() + b'\n{"id": "\xff"}\n'), "line 2 is not UTF-8 from byte 9 on"),
    "a huge line": (raw(GOOD_LINE + "\n" + " " * (1 << 20) + "\n"), "line 2 is longer than 1,048,576 bytes"),
    "an empty question": (lines({"question": " "}), "line 2 has an empty 'question'"),
    "a placeholder": (lines({"question": "<image>\nwhere?"}), "has '<image>' in 'question'"),
    "half a character": (raw(GOOD_LINE.replace("left", "\\ud800")), "half a character"),
    "two user turns": (chat("user", "user"), "has turn 2 of its chat by 'user' where 'assistant' is due"),
    "a system turn": (chat("system", "user"), "has turn 1 of its chat by 'system' where 'user' is due"),
    "no turns": (chat(), "no list of turns"),
    "two answers": (chat("user", "assistant"), "ends its chat with an answer and has 'answer' too"),
    "no last answer": (chat("user", "assistant", "user", answer=None), "line 2 has no 'answer'"),
    "a turn of other fields": (lines({"question": None, "messages": [USER]}), "has a turn 1 that is no"),
    "more pictures shown than named": (
        lines({"question": None, "image": None, "messages": [{**USER, "content": SHOWN}]}),
        "shows 1 pictures in turn 1 and names 0",
    ),
    "a picture after the words": (
        lines({"question": None, "messages": [{**USER, "content": SHOWN[::-1]}]}),
        "has parts in turn 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_sentence(folder: Path, name: str):
    write, words = MALFORMED[name]
    file = folder / "own.jsonl"
    write(file)
    with pytest.raises(UserError) as refusal:
        load_questions(f"jsonl:{file}", "test")
    said = str(refusal.value)
    assert words in said and str(file) in said and "\n" not in said and said.count(": ") >= 1, said


@pytest.mark.parametrize("option", ["--eval", "--calib"])
@pytest.mark.parametrize("name", ["bad JSON", "an id twice", "a missing picture", "invalid UTF-8"])
def test_the_commands_refuse_it_before_they_export(
    folder: Path, name: str, option: str, capsys: pytest.CaptureFixture[str]
):
    write, words = MALFORMED[name]
    write(folder / "own.jsonl")
    coeffs, out = str(EXAMPLE / "spatial.pt"), folder / "package"
    fold = ("fold", "--coeffs", coeffs, "--target", "cpu", "--precision", "int4", "--out", str(out))
    assert run(*fold, option, f"jsonl:{folder / 'own.jsonl'}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "Traceback" not in said and not out.exists()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("", "name its file, jsonl:FILE"),
        (".", "is a folder"),
        ("nowhere.jsonl", "there is no file nowhere.jsonl"),
    ],
)
def test_a_file_must_be_named(argument: str, words: str):
    with pytest.raises(UserError, match=re.escape(words)):
        load_questions(f"jsonl:{argument}", "test")


def test_a_file_has_bounds(folder: Path, monkeypatch: pytest.MonkeyPatch):
    spec = written(folder, GOOD, {**GOOD, "id": "b"})
    monkeypatch.setattr(_lines, "MOST_LINES", 1)
    with pytest.raises(UserError, match="more than 1 lines: divide it"):
        load_questions(spec, "test")
    monkeypatch.setattr(_lines, "MOST_BYTES", 9)
    with pytest.raises(UserError, match="larger than the 9 bytes"):
        load_questions(spec, "test")


def test_a_file_that_changed_is_read_again(folder: Path):
    spec = f"{written(folder, GOOD)},whole"
    assert load_questions(spec, "test")[0].answer == "left"
    written(folder, {**GOOD, "answer": "above"})
    assert load_questions(spec, "test")[0].answer == "above"


def test_reports_carry_no_place_on_a_disk(folder: Path):
    assert public_name(written(folder, GOOD)) == "jsonl"


def test_a_picture_that_is_none_names_its_line_when_it_is_looked_at(folder: Path):
    (folder / "pictures/1.png").write_bytes(b"no picture")
    question = only(folder)
    with pytest.raises(UserError, match=r"own\.jsonl, line 1: pictures/1\.png cannot be read as a picture"):
        _ = question.images


def test_the_documented_file_is_read(tmp_path: Path):
    page = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    shown = re.search(r"```jsonl\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    (tmp_path / "own.jsonl").write_text(shown[1], encoding="utf-8")
    for name in set(re.findall(r"[\w/]+\.(?:png|jpg)", shown[1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(1).save(tmp_path / name)
    questions = load_questions(f"jsonl:{tmp_path / 'own.jsonl'},whole", "test")
    assert len(questions) == len(shown[1].splitlines()) >= 4
    written = {name for line in shown[1].splitlines() for name in json.loads(line)}
    assert written == set(_lines.FIELDS), "the example shows every field"
    table = page[page.index("| field |") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(_lines.FIELDS)
    assert {q.rule for q in questions} == set(_lines.RULES.values())
