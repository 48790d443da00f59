"""What ``--calib`` takes beside question sets, through the plan that a command makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.model.base import BaseModel
from scale_export.plan import quantizer_choice
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from scale_export.quantize.sources import QuestionSource, SelfSource, TextSource, parse_source
from scale_export.questions import load_questions
from tests.helpers.cli import run
from tests.helpers.coefficients import random_coefficients
from tests.helpers.pictures import picture

BaseOf = Callable[[str, str], BaseModel]
EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"


def test_a_source_is_parsed_and_its_public_name_holds_no_place():
    found = {
        "gridworld:seed=3": (QuestionSource("gridworld:seed=3"), "gridworld:seed=3"),
        "text:my/notes,tokens=16": (TextSource(Path("my/notes"), 16), "text:tokens=16"),
        "text:a.txt": (TextSource(Path("a.txt"), 64), "text:tokens=64"),
        "self": (SelfSource(), "self:32,seed=0"),
        "self:8": (SelfSource(8), "self:8,seed=0"),
        "self:8,seed=2": (SelfSource(8, 2), "self:8,seed=2"),
        "self:images=my/photos, 2": (SelfSource(images=Path("my/photos, 2")), "self:32,seed=0,images="),
    }
    for spec, (source, public) in found.items():
        assert parse_source(spec) == source and source.public == public
        if "my" not in spec and not spec.startswith("text"):
            assert parse_source(public) == source, "a manifest's name is that source again"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("texts:a.txt", "unknown question set 'texts' (did you mean 'text'?)"),
        ("text", "name a file or a folder of .txt files"),
        ("text:tokens=64", "name a file or a folder of .txt files"),
        ("text:a.txt,tokens=four", "text's tokens must be a whole number"),
        ("text:a.txt,tokens=4", "tokens=4 is refused: give 8 to 2048"),
        ("self:0", "self:0 is refused: give 1 to 1024"),
        ("self:many", "self's sequences must be a whole number, not 'many'"),
        ("self:8,sead=1", "self has no option 'sead' (did you mean 'seed'?)"),
        ("self:8,images=", "names no folder"),
    ],
)
def test_a_malformed_source_is_refused(spec: str, words: str):
    with pytest.raises(UserError, match=re.escape(words)):
        parse_source(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("text:nowhere.txt", "no text nowhere.txt to calibrate on"),
        ("text:{}/empty", "no .txt file in"),
        ("self:images=nowhere", "no folder nowhere of pictures"),
        ("self:images={}/empty", "no picture in"),
        ("jsonl:{}/own.jsonl", "jsonl has no calibration questions"),
    ],
)
def test_the_command_refuses_what_is_not_there(
    spec: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    line = '{"id": "1", "question": "why?", "answer": "so", "split": "test"}\n'
    (tmp_path / "own.jsonl").write_text(line, encoding="utf-8")
    asked = ("--coeffs", str(EXAMPLE / "spatial.pt"), "--target", "cpu", "--precision", "int4")
    assert run("fold", *asked, "--out", str(tmp_path / "out"), "--calib", spec.format(tmp_path)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and not (tmp_path / "out").exists()


def test_sources_without_questions_are_no_question_sets():
    for name in ("text:a.txt", "self"):
        with pytest.raises(UserError, match="holds no questions: give it to --calib"):
            load_questions(name, "test")


def plan_of(base: BaseModel, **options: Any) -> Plan:
    return make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions(**options))


def test_a_dry_run_says_what_it_would_calibrate_on(base_of: BaseOf, tmp_path: Path):
    (tmp_path / "a.txt").write_text("where is the circle ?", encoding="utf-8")
    picture(1).save(tmp_path / "1.png")
    base = base_of("llava", "llama")
    for options, words in (
        (
            {},
            "calibrated on 32 chats about generated pictures that the model writes itself (seed 0), uniform",
        ),
        ({"calib": "self:6,seed=4", "calib_text_only": True}, "on 6 chats without pictures that the model"),
        ({"calib": f"self:images={tmp_path}"}, "on 32 chats about your pictures that the model"),
        ({"calib": f"text:{tmp_path},tokens=8"}, "on up to 128 windows of 8 tokens of text, uniform"),
        ({"calib": "gridworld", "calib_limit": 3}, "on up to 3 questions of gridworld, uniform"),
    ):
        plan = plan_of(base, precision="int4", **options)
        assert plan.quantizer == "gptq" and any(words in said for said in plan.decisions), plan.decisions
        assert not any(str(tmp_path) in said for said in plan.decisions)
        assert (plan.questions is None) == ("gridworld" not in options.values()), "a budget asks questions"


def test_a_model_larger_than_memory_does_not_write(base_of: BaseOf, monkeypatch: pytest.MonkeyPatch):
    base = base_of("llava", "llama")
    monkeypatch.setattr(quantizer_choice, "must_stream", lambda *_: "too large")
    plan = plan_of(base, precision="int4")
    assert (plan.quantizer, plan.calibration) == ("rtn", None)
    assert any(
        "gptq, the better default, was not taken, since the model is larger" in d for d in plan.decisions
    )
    for options in ({"calib": "self"}, {"quantizer": "gptq"}, {"quantizer": "gptq", "calib": "self:4"}):
        with pytest.raises(UserError, match="larger than memory"):
            plan_of(base, precision="int4", **options)
    assert plan_of(base, precision="int4", quantizer="gptq", calib="gridworld").calibration is not None
