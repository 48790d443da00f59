"""Questions of one's own through the commands: trained on, calibrated on, asked, replayed and verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export import attach, open_package
from scale_export.coefficients.file import load_coefficients
from scale_export.device.prompts import conversation
from scale_export.model.asking import answer_questions
from scale_export.model.base import BaseModel
from scale_export.questions import load_questions
from tests.helpers.cli import last_json, run
from tests.helpers.pictures import picture

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"
SPLITS = ("train", "train", "validation", "test")


def line(number: int, **fields: Any) -> dict[str, Any]:
    """A question about one picture; every second one is not spatial."""
    made = {
        "id": str(number),
        "image": f"{number % 3}.png",
        "question": "where is the circle ?",
        "answer": "left",
        "kind": ("spatial", "other")[number % 2],
        "split": SPLITS[number % 8 // 2],
    }
    return {name: value for name, value in {**made, **fields}.items() if value is not None}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Sixteen of them: with two pictures, in a chat, with options, with several answers, without a picture."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    turns = ("what is red ?", "the circle", "where is it ?")
    chat = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    special: dict[int, dict[str, Any]] = {
        0: {"question": None, "messages": chat},
        1: {"options": ["left", "right"]},
        2: {"image": None, "images": ["0.png", "1.png"]},
        6: {"question": None, "messages": chat},
        7: {"image": None, "images": ["2.png", "1.png"], "answer": None, "answers": ["left", "the left"]},
        14: {"image": None},
        15: {"scoring": "contains"},
    }
    file = tmp_path / "own.jsonl"
    lines = [line(number, **special.get(number, {})) for number in range(16)]
    file.write_text("".join(json.dumps(made) + "\n" for made in lines), encoding="utf-8")
    return file


def test_train_takes_them_and_replays_them(
    questions: Path, base_of: Callable[[str, str], BaseModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model, spec, out = str(base_of("llava", "llama").directory), f"jsonl:{questions}", questions.parent
    quick = ("--steps", "2", "--batch-size", "4")
    assert run("train", model, "--data", spec, "--out", str(out / "own.pt"), *quick, "--json") == 0
    assert load_coefficients(out / "own.pt").training["data"] == spec
    replayed = ("--data", "gridworld", "--replay-data", spec, "--limit", "8")
    assert run("train", model, *replayed, "--out", str(out / "replayed.pt"), *quick) == 0
    capsys.readouterr()
    questions.write_text(questions.read_text(encoding="utf-8") + "{", encoding="utf-8")
    assert run("train", model, "--data", spec, "--out", str(out / "none.pt"), *quick) == 2
    assert "own.jsonl, line 17 is not JSON" in " ".join(capsys.readouterr().err.split())
    assert not (out / "none.pt").exists()


def test_chats_and_several_pictures_are_asked_alike(
    questions: Path, base_of: Callable[[str, str], BaseModel], coefficient_file: Path, package: Path
) -> None:
    """By Hugging Face's model with hooks, and by a package."""
    base, responder = base_of("llava", "llama"), open_package(package).responder
    asked = load_questions(f"jsonl:{questions},whole", "test")
    chosen = [question for question in asked if question.earlier or len(question.pictures) != 1]
    assert len(chosen) == 5
    with attach(base.model, load_coefficients(coefficient_file)):
        expected = answer_questions(base.model, base.processor, chosen, batch_size=1)
    found = [responder.reply(conversation(question), max_new_tokens=8) for question in chosen]
    assert found == [answer.text for answer in expected] and len(set(found)) > 1


@pytest.mark.slow
def test_fold_calibrates_on_them_asks_them_and_verify_finds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped model on the grid world's own questions, written as a file."""
    lines = []
    for number, asked in enumerate(load_questions("gridworld", "validation", limit=24)):
        asked.images[0].save(tmp_path / f"{number}.png")
        own_line = line(number, image=f"{number}.png", question=asked.prompt, kind=asked.kind)
        lines.append({**own_line, "answer": asked.answer, "split": ("train", "test")[number % 3 == 0]})
    file, package = tmp_path / "own.jsonl", str(tmp_path / "package")
    file.write_text("".join(json.dumps(own_line) + "\n" for own_line in lines), encoding="utf-8")
    own, cache = ("--calib", f"jsonl:{file}", "--eval", f"jsonl:{file}"), ("--cache", str(tmp_path / "cache"))
    places = ("--coeffs", str(EXAMPLE / "spatial.pt"), "--target", "cpu", "--out", package)
    assert run("fold", *places, "--precision", "int4", *own, *cache, "--json") == 0
    made = last_json(capsys)["parity"]["legs"]
    assert made["task"]["cases"] == 8 and made["task"]["dataset"] == "jsonl"
    facts = json.loads((Path(package) / "manifest.json").read_text(encoding="utf-8"))["calibration"]
    assert (facts["questions"], facts["limit"]) == ("jsonl", 128)
    shipped = "".join(path.read_text(encoding="utf-8") for path in Path(package).glob("*.json"))
    assert str(tmp_path) not in shipped
    again = ("verify", package, "--model", str(EXAMPLE / "model"), *cache)
    assert run(*again, *own, "--json") == 0
    legs = last_json(capsys)["parity"]["legs"]
    assert legs["quantization"] == made["quantization"]
    assert legs["task"]["questions_sha256"] == made["task"]["questions_sha256"]
    assert run(*again) == 2
    assert "name its file, jsonl:FILE" in " ".join(capsys.readouterr().err.split())
