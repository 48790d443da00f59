"""Answers on the parity prompts are a gate: what it takes to pass, to fail, and when nothing follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import verify
from scale_export.cli import display
from scale_export.core.words import Precision
from scale_export.model.asking import Answer
from scale_export.model.base import open_base
from scale_export.package.stored_report import failed_checks
from scale_export.plan.targets import load_target
from scale_export.proof import answers, candidate, measure_checkpoint
from scale_export.proof.answers import MAX_LISTED, Answered, ParityAnswers, answer_limit, parity_answers
from scale_export.proof.report import ParityReport
from scale_export.proof.task import task_leg
from scale_export.questions.question import Question
from scale_export.report.legs import headline, leg_views
from tests.helpers import parity as made
from tests.helpers.cli import last_json, run
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on

CPU = load_target("cpu").parity
QUESTION = Question(id="q", instance="q", prompt="where?", answer="", kind="other", topic="parity")


def answered(
    *pairs: tuple[str, str], near_tie: bool = False, decided: bool = True, tokens: int = 2
) -> list[Answered]:
    """Pairs of what PyTorch ScAle and the export say."""
    return [
        Answered(
            question=QUESTION,
            base="",
            scale=scale,
            export=export,
            near_tie=near_tie,
            decided=decided,
            tokens=tokens,
        )
        for scale, export in pairs
    ]


SAME = answered(*[(word, word) for word in ("left", "right", "above") * 5])


def judged(found: list[Answered], precision: Precision = "float32") -> ParityAnswers:
    return parity_answers(found, CPU.of(precision))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4", "w8a8"])
def test_no_equal_answer_fails_at_every_precision(precision: Precision) -> None:
    wrong = [replace(one, export="none") for one in SAME]
    assert judged(SAME, precision).passed is True
    for tokens in (1, 2, 16):
        found = judged([replace(one, tokens=tokens) for one in wrong], precision)
        assert found.passed is False and found.outside_near_ties == 0 and found.limit and found.limit > 0


def test_float_weights_are_held_to_the_targets_limit_on_answers() -> None:
    one_off = [replace(SAME[0], export="none"), *SAME[1:]]
    assert judged(one_off).passed is False and judged(one_off).limit == CPU.of("float32").min_answer_agreement
    assert judged(one_off, "int4").passed is True


def test_an_answer_of_many_tokens_is_held_to_what_the_limits_on_positions_leave() -> None:
    int4, int8 = CPU.of("int4"), CPU.of("int8")
    assert int4.min_top1_agreement == 0.85 and int4.runtime_min_top1_agreement == 0.95
    assert answer_limit(int4, [1]) == pytest.approx(0.8075)
    assert answer_limit(int4, [1, 3]) == pytest.approx((0.8075 + 0.8075**3) / 2)
    assert answer_limit(int8, [1]) == pytest.approx(0.97**2) and int8.min_answer_agreement == 0.95
    strict = int8.model_copy(update={"min_answer_agreement": 0.5})
    assert answer_limit(strict, [1]) == 0.5, "never more than what the target states of answers"
    free = CPU.of("float32").model_copy(update={"min_answer_agreement": None})
    assert answer_limit(free, [2]) is None and parity_answers(SAME, free).passed is None


def test_near_ties_are_set_aside_and_where_they_leave_nothing_nothing_is_decided() -> None:
    tied = answered(*[("left", "none"), ("right", "none")], near_tie=True)
    assert judged([*SAME, *tied]).passed is True and judged([*SAME, *tied]).near_ties == 2
    found = judged(tied)
    assert found.passed is None and found.outside_near_ties is None
    assert found.undecided == "near-ties leave no answer to compare"
    assert judged([]).passed is None and judged([]).undecided


def test_the_same_answer_to_every_prompt_proves_nothing_and_still_disproves() -> None:
    found = judged(answered(*[("left", "left")] * 20))
    assert found.passed is None and "says the same to every prompt" in str(found.undecided)
    assert set(found.figures().values()) == {None}, "so that no requirement holds by it"
    assert judged(answered(*[("left", "right")] * 20)).passed is False
    assert judged(answered(*[("left", "left")] * 20, ("right", "right"))).passed is True


def shown(report: ParityReport, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(display.console, "width", 220)
    with display.console.capture() as captured:
        display.show_parity(report)
    return captured.get()


@pytest.mark.parametrize(
    ("answers", "verdict", "passed"),
    [
        (made.answers(), "passed", True),
        (made.answers(outside_near_ties=0.5, share=0.5, differing=12), "failed", False),
        (made.answers(various=False), "not checked", True),
        (made.answers(outside_near_ties=None, near_ties=24), "not checked", True),
        (made.answers(limit=None), "no limit", True),
    ],
)
def test_page_terminal_and_json_say_what_came_of_it(
    answers: ParityAnswers, verdict: str, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = made.parity(answer_agreement=answers)
    assert report.passed is passed and ("answer agreement" in report.failed) is (not passed)
    view = next(view for view in leg_views(report) if view.name == "answer agreement")
    assert view.verdict == verdict and view.rows and view.meaning
    assert ("answer agreement leg is beyond" in headline(report.passed, leg_views(report))) is (not passed)
    line = next(line for line in shown(report, monkeypatch).splitlines() if "│ answer agreement" in line)
    assert verdict.upper() in line if verdict == "failed" else verdict in line
    stored: Any = report.to_json()["answer_agreement"]
    assert stored["passed"] is answers.passed and stored["limit"] == answers.limit
    assert failed_checks(json.loads(json.dumps(report.to_json()))) == (
        () if passed else ("answer agreement",)
    )


def test_an_older_record_without_a_verdict_on_answers_is_read() -> None:
    table: Any = made.parity(answer_agreement=made.answers()).to_json()
    for key in ("limit", "various", "passed"):
        del table["answer_agreement"][key]
    assert failed_checks(table) == ()


def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported answers in other words; its logits are as they were."""
    for kind in (candidate.GraphCandidate, measure_checkpoint.StoredModel):
        monkeypatch.setattr(kind, "answer", lambda self, question: "something else")


def test_fold_exits_with_1_where_no_answer_is_the_same(
    base_of: Any, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Sabotage: every leg passes, and the package answers something else."""
    mute(monkeypatch)
    model, out = str(base_of("llava", "llama").directory), tmp_path / "out"
    words = [
        "fold",
        "--coeffs",
        str(coefficient_file),
        "--target",
        "cpu",
        "--model",
        model,
        "--out",
        str(out),
    ]
    assert run(*words, "--precision", "float32", "--eval", "none", "--json") == 1
    found = last_json(capsys)["parity"]
    assert found["answer_agreement"]["passed"] is False and found["answer_agreement"]["agreement"] == 0
    assert all(leg["passed"] for leg in found["legs"].values() if leg) and not found["passed"]
    assert not out.exists() and out.with_name("out.failed").is_dir()


def test_verify_fails_where_no_answer_is_the_same(
    package: Path, base_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute(monkeypatch)
    found = verify(package, model=str(base_of("llava", "llama").directory), evaluation="none")
    assert not found.passed and found.report is not None and found.report.failed == ["answer agreement"]


def test_a_checkpoint_fails_where_no_answer_is_the_same(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("llava", "llama")
    file = saved(random_coefficients(base, "all"), tmp_path)
    sound = fold_on(base, file, "checkpoint", out=tmp_path / "sound", evaluation="none")
    assert sound.passed and sound.report.answer_agreement and sound.report.answer_agreement.passed
    mute(monkeypatch)
    outcome = fold_on(base, file, "checkpoint", out=tmp_path / "out", evaluation="none")
    assert not outcome.passed and outcome.report.failed == ["answer agreement"]


def test_other_prompts_are_asked_where_all_answers_are_the_same(
    base_of: Any, coefficient_file: Path, tmp_path: Path
) -> None:
    """One token is all that this model may say: every prompt is asked, and the report says what that proves."""
    directory = Path(shutil.copytree(base_of("llava", "llama").directory, tmp_path / "base"))
    path = directory / "generation_config.json"
    base = open_base(str(directory))
    table = json.loads(path.read_text(encoding="utf-8"))
    table["suppress_tokens"] = [token for token in range(base.spec.vocab_size) if token != 70]
    path.write_text(json.dumps(table), encoding="utf-8")
    outcome = fold_on(
        open_base(str(directory)), coefficient_file, "cpu", out=tmp_path / "out", precision="float32",
        evaluation="none",
    )  # fmt: skip
    found = outcome.report.answer_agreement
    assert found is not None and found.share == 1 and found.passed is None
    assert found.cases == 50, "48 questions, a wide picture, no picture"
    assert outcome.report.verdict("answer agreement") == "not checked"
    assert "says the same to every prompt" in outcome.report.reason("answer agreement")


def test_the_base_model_is_asked_only_where_its_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [replace(QUESTION, id=str(number)) for number in range(MAX_LISTED + 3)]
    asked: list[tuple[bool, list[str]]] = []
    hooked = [False]

    @contextmanager
    def attached(*_: Any) -> Iterator[None]:
        hooked[0] = True
        yield
        hooked[0] = False

    def reference(_model: Any, _processor: Any, chosen: list[Question], *_: Any) -> list[Answer]:
        asked.append((hooked[0], [question.id for question in chosen]))
        word, sure = ("scaled" if hooked[0] else "base"), np.ones(1, np.float32)
        return [Answer(text=word, token_ids=(1,), margins=sure, peaks=sure) for _ in chosen]

    monkeypatch.setattr(answers, "attach", attached)
    monkeypatch.setattr(answers, "_reference_answers", reference)
    models: Any = (None, None, None)

    def export(question: Question) -> str:
        return "scaled" if question.id == "1" else "other"

    found = answers.ask_all(*models, export, questions, lambda *_: None, base_too=False)
    every = [question.id for question in questions]
    assert asked == [(True, every), (False, [name for name in every if name != "1"][:MAX_LISTED])]
    assert found[1].base is None and found[0].base == "base" and found[0].scale == "scaled"
    listed = parity_answers(found, CPU.of("int8"))
    assert listed.differing == MAX_LISTED + 2 and {one.base for one in listed.listed} == {"base"}
    assert all(one.base == "base" for one in answers.ask_all(*models, export, questions, lambda *_: None))


def test_integer_weights_are_held_to_the_answers_that_were_decided():
    """Half of the others change, and that is told but not held; of float weights it fails."""
    undecided = [
        (word, other) for word, other in zip(("left", "right") * 5, ("left", "above") * 5, strict=True)
    ]
    asked = [*SAME, *answered(*undecided, decided=False)]
    integers, floats = (task_leg("made", asked, limits) for limits in (CPU.of("int8"), CPU.of("float32")))
    assert (integers.agreement.decided, integers.agreement.where_decided) == (15, 1.0)
    assert integers.held_agreement == 1.0 and integers.passed
    assert floats.held_agreement == integers.agreement.outside_near_ties == 0.8 and not floats.passed
    assert integers.figures()["agreement"] == 0.8 and integers.figures()["agreement.decided"] == 1.0
    assert "15 that PyTorch ScAle was decided about" in integers.rows()[0].label

    wrong = task_leg("made", [*asked, *answered(("left", "right"))], CPU.of("int8"))
    assert wrong.held_agreement == 15 / 16 and not wrong.passed
    none = task_leg("made", answered(*undecided, decided=False), CPU.of("int8"))
    assert none.held_agreement is None and none.passed, "nothing was decided, so nothing can be lost by it"
