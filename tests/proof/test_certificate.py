"""The figures of a report: loss attributed to its steps, equivalence, differing answers; and what breaks each."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import UserError, verify
from scale_export.core.intervals import equivalence
from scale_export.core.resources import resource_dir
from scale_export.pipeline.fold import Outcome
from scale_export.plan.evaluation_choice import evaluation_set
from scale_export.plan.targets import ParityLimits, load_target
from scale_export.proof import measure as measuring
from scale_export.proof.answers import MAX_LISTED, Answered, Verdicts
from scale_export.proof.attribution import attribution
from scale_export.proof.cases import Case, Prompt
from scale_export.proof.task import task_leg
from scale_export.questions.question import Question
from tests.helpers import questions as made
from tests.helpers.coefficients import random_coefficients
from tests.helpers.folds import fold_on
from tests.helpers.parity import parity

STEPS = ("fold", "lowering", "quantization", "runtime", "preprocessing")


def logits(seed: int, noise: float = 0.0) -> list[Any]:
    """Three cases of four steps over a vocabulary of nine, with noise of its own on top."""
    base = np.random.default_rng(1).normal(size=(3, 4, 9))
    extra = np.random.default_rng(seed).normal(size=base.shape) * noise
    return list((base + extra).astype(np.float32))


def cases(seed: int) -> list[Case]:
    """The same as cases whose answers don't end."""
    prompt = Prompt(name="case", images=(), text="")
    return [Case(prompt=prompt, inputs={}, tokens=(0, 0, 0), logits=rows) for rows in logits(seed)]


def chain(broken: str | None = None) -> list[tuple[str, list[Any]]]:
    """Every step, each with a little noise more than the one before it, one of them with much more from there on."""
    stages, noise = [], 0.0
    for step in STEPS:
        noise += 0.5 if step == broken else 1e-4
        stages.append((step, logits(5, noise)))
    return stages


def test_parts_add_up_to_a_whole_that_was_measured_on_its_own():
    found = attribution(cases(1), chain("quantization"))
    assert found.passed is True and list(found.parts) == list(STEPS)
    for name in ("kl", "top1_changed"):
        parts = [getattr(part, name) for part in found.parts.values()]
        assert sum(parts) == pytest.approx(getattr(found.whole, name), abs=1e-12)
    assert found.whole.kl and found.whole.kl > 0 and (found.cases, found.positions) == (3, 12)


@pytest.mark.parametrize("step", STEPS)
def test_a_broken_step_carries_its_own_loss(step: str):
    parts: Any = {name: part.kl for name, part in attribution(cases(1), chain(step)).parts.items()}
    assert max(parts, key=parts.__getitem__) == step
    assert parts[step] > 0.9 * sum(map(abs, parts.values()))


def test_parts_that_dont_add_up_fail_the_report():
    found = attribution(cases(1), chain())
    report = parity(attribution=found)
    assert report.passed
    for name in ("kl", "top1_changed"):
        part = found.parts["lowering"]
        moved = replace(part, **{name: getattr(part, name) + 1e-6})
        tampered = replace(found, parts={**found.parts, "lowering": moved})
        assert tampered.passed is False
        assert not replace(report, attribution=tampered).passed


def test_a_loss_that_is_not_finite_is_attributed_to_nothing():
    broken = [np.full_like(case, np.nan) for case in logits(1)]
    found = attribution(cases(1), [("fold", logits(1)), ("lowering", broken)])
    assert found.whole.kl is None and found.parts["lowering"].kl is None
    assert found.passed is None and found.parts["lowering"].top1_changed == 1


def bools(*counts: tuple[bool, bool, int]) -> tuple[Any, Any]:
    rows = [(a, b) for a, b, n in counts for _ in range(n)]
    return np.array([a for a, _ in rows], bool), np.array([b for _, b in rows], bool)


def test_equivalence_is_the_interval_within_the_margin():
    a, b = bools((True, True, 900), (False, False, 80), (True, False, 12), (False, True, 8))
    found = equivalence(a, b, 0.02)
    assert found is not None and found.shown and found.p is not None
    assert -0.02 < found.low < 0.004 < found.high < 0.02
    assert found.within == max(-found.low, found.high)
    for margin in (found.within * 1.001, found.within * 0.999):
        again = equivalence(a, b, margin)
        assert again is not None and again.shown == (margin > found.within) == (again.p <= 0.05)  # type: ignore[operator]


def test_few_questions_show_no_equivalence_and_no_difference_either():
    a, b = bools((True, True, 20))
    found = equivalence(a, b, 0.02)
    assert found is not None and found.shown is False and found.within > 0.1
    assert equivalence(*bools((True, True, 400)), 0.02).shown  # type: ignore[union-attr]


def test_a_real_loss_is_not_equivalent_however_many_questions():
    a, b = bools((True, True, 9000), (False, False, 500), (True, False, 500))
    found = equivalence(a, b, 0.02)
    assert found is not None and found.shown is False and found.p > 0.99  # type: ignore[operator]
    assert equivalence(*bools((True, True, 0)), 0.02) is None
    assert equivalence(a, b, None).shown is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="between 0 and 1"):
        equivalence(a, b, 1.5)


def test_equivalence_holds_its_level():
    """At a true difference of exactly the margin, equivalence is shown in at most one of twenty sets of questions."""
    rng = np.random.default_rng(3)
    shown = 0
    for _ in range(400):
        draw = rng.random(600)
        a, b = draw < 0.85, (draw < 0.80) | (draw > 0.98)
        b = np.where(draw < 0.07, False, b)  # a right alone: 0.12; b right alone: 0.02; difference 0.10
        found = equivalence(a, b.astype(bool), 0.10)
        shown += bool(found and found.shown)
    assert shown / 400 <= 0.075


def answers(*pairs: tuple[str, str], kind: Any = "spatial", rule: str = "exact") -> list[Answered]:
    """Answers of PyTorch ScAle and the export to questions whose truth is "left"."""
    return [
        Answered(
            question=Question(
                id=f"q{i}",
                instance=f"i{i}",
                prompt="where?",
                answer="left",
                kind=kind,
                topic="t",
                rule=rule,
            ),
            base="right",
            scale=scale,
            export=export,
            near_tie=False,
            decided=True,
            tokens=2,
        )
        for i, (scale, export) in enumerate(pairs)
    ]


def test_a_margin_that_is_not_shown_fails_the_task_leg():
    limits = ParityLimits(near_tie_budget=0.1, equivalence_margin=0.02)
    free = ParityLimits(near_tie_budget=0.1)
    same, worse = (
        answers(*[("left", "left")] * 400),
        answers(*[("left", "left")] * 380, *[("left", "right")] * 20),
    )
    assert task_leg("s", same, limits).passed is True
    assert task_leg("s", worse, free).passed is True
    found = task_leg("s", worse, limits)
    assert found.passed is False and found.equivalent_spatial and found.equivalent_spatial.shown is False
    assert task_leg("s", same[:20], limits).passed is False  # too few to show anything
    hidden = same + answers(*[("left", "right")] * 12, *[("left", "left")] * 50, kind="other")
    mixed = [replace(a, question=replace(a.question, kind="other")) for a in same] + worse[330:]
    found = task_leg("s", hidden, limits)
    assert found.equivalent and found.equivalent.shown is False
    assert task_leg("s", mixed, limits).passed is False


def test_differing_answers_are_counted_and_listed_up_to_a_bound():
    leg = task_leg(
        "s", answers(*[("left", "right")] * 130, ("Left ", "left")), ParityLimits(near_tie_budget=0)
    )
    found = leg.agreement
    assert found.differing == 130 and len(found.listed) == MAX_LISTED == 100
    first = found.listed[0]
    assert (first.id, first.truth, first.scale, first.export) == ("q0", "left", "left", "right")
    assert first.right == Verdicts(base=False, scale=True, export=False)
    stored: Any = leg.to_json()["differences"]
    assert stored["count"] == 130 and stored["listed"][0]["right"] == {
        "base": False,
        "scale": True,
        "export": False,
    }


def test_questions_without_a_rule_are_unscored_and_still_compared():
    some = answers(("left", "left"), ("left", "right")) + answers(("x", "y"), rule="spatialreal")
    limits = ParityLimits(near_tie_budget=0)
    leg = task_leg("s", some, limits, scoring="official")
    assert (leg.scoring, leg.unscored, leg.cases) == ("official", 1, 3)
    assert leg.export.all and leg.export.all.cases == 2 and leg.agreement.differing == 2
    nothing = task_leg("s", some[2:], limits, scoring="official")
    assert nothing.export.all is None and nothing.difference is None
    assert nothing.equivalent is None
    margin = ParityLimits(near_tie_budget=0, equivalence_margin=0.02)
    assert task_leg("s", some[2:], margin, scoring="official").passed is False


@pytest.mark.parametrize(("value", "fits"), [("0.02", True), ("0.0", False), ("1.0", False), ("-0.1", False)])
def test_a_target_may_state_a_margin(tmp_path: Path, value: str, fits: bool):
    text = (
        (resource_dir("targets") / "cpu.toml")
        .read_text(encoding="utf-8")
        .replace('name = "cpu"', 'name = "own"')
    )
    path = tmp_path / "own.toml"
    path.write_text(text.replace("[parity.int4]\n", f"[parity.int4]\nequivalence_margin = {value}\n"))
    if fits:
        parity = load_target(path).parity
        assert (parity.of("int4").equivalence_margin, parity.of("int8").equivalence_margin) == (0.02, None)
    else:
        with pytest.raises(UserError, match="equivalence_margin"):
            load_target(path)


@pytest.fixture(scope="module")
def evaluated(
    base_of: Any, coefficient_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, dict[str, Any]]:
    """A float32 package of the random model, measured on a small SpatialEval; and what ``verify`` takes to ask again.

    Its target allows any share of near-ties: random logits lie close together.
    """
    directory = tmp_path_factory.mktemp("evaluated")
    text = (resource_dir("targets") / "cpu.toml").read_text(encoding="utf-8")
    target = directory / "tied.toml"
    target.write_text(
        re.sub("near_tie_budget = .*", "near_tie_budget = 1.0", text.replace('name = "cpu"', 'name = "tied"'))
    )
    base = base_of("llava", "llama")
    asked = {
        "model": str(base.directory), "target": str(target), "scoring": "official",
        "evaluation": f"spatialeval:{made.spatialeval_parquet(directory / 'set')}", "eval_limit": 6,
    }  # fmt: skip
    outcome = fold_on(base, coefficient_file, out=directory / "package", precision="float32", **asked)
    return outcome, asked


def test_a_set_on_disk_runs_through_the_whole_task_leg(evaluated: Any):
    outcome, _ = evaluated
    leg = outcome.parity["legs"]["task"]
    assert outcome.passed and leg["cases"] == 6 and leg["dataset"] == "spatialeval"
    assert leg["scoring"] == "official" and len(leg["questions_sha256"]) == 64
    assert leg["agreement"] == 1 and leg["differences"] == {"count": 0, "listed": []}
    page = (outcome.path / "report.html").read_text()
    assert "Where the loss comes from" in page and "official" in page and str(outcome.path.parent) not in page
    stored = json.loads((outcome.path / "parity.json").read_text())
    assert stored["attribution"]["passed"] is True
    assert list(stored["attribution"]["parts"]) == ["fold", "lowering", "preprocessing"]


def test_verify_asks_the_same_questions_and_holds_requirements(evaluated: Any):
    outcome, asked = evaluated
    require = ["float32.parity.agreement>=1", "fold<=1e-5", "size<1e9", "lowering<1e-9", "kl<=1"]
    found = verify(outcome.path, require=require, **asked)
    assert found.parity is not None and found.parity["passed"]
    same, other = found.parity["legs"]["task"], outcome.parity["legs"]["task"]
    assert same["questions_sha256"] == other["questions_sha256"]
    assert [checked.passed for checked in found.requirements] == [True, True, True, False, False]
    assert found.requirements[3].value == found.parity["legs"]["lowering"]["value"]
    assert (
        found.requirements[4].value is None
    )  # nothing is quantized, and what was not checked fulfils nothing
    assert not found.passed


def test_an_export_that_answers_otherwise_is_listed_and_fails(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch
):
    outcome, asked = evaluated
    monkeypatch.setattr(measuring.Responder, "reply", lambda self, *a, **k: "something else")
    found = verify(outcome.path, **{**asked, "scoring": "strict"})
    assert found.parity is not None
    leg = found.parity["legs"]["task"]
    assert leg["differences"]["count"] == 6 and leg["unscored"] == 0
    assert leg["differences"]["listed"][0]["export"] == "something else"
    assert leg["passed"] is False and not found.passed


def test_a_picture_flipped_by_the_packages_processor_is_that_steps_loss(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch
):
    outcome, asked = evaluated
    encode = measuring.encode_messages

    def flipped(processor: Any, messages: Any) -> Any:
        inputs = encode(processor, messages)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = np.ascontiguousarray(inputs["pixel_values"][..., ::-1])
        return inputs

    monkeypatch.setattr(measuring, "encode_messages", flipped)
    found = verify(outcome.path, **{**asked, "evaluation": "none"})
    assert found.parity is not None
    parts = found.parity["attribution"]["parts"]
    assert max(parts, key=lambda name: parts[name]["kl"]) == "preprocessing"
    assert parts["preprocessing"]["kl"] > 1e-4 > abs(parts["lowering"]["kl"])


def test_scalars_trained_on_a_set_that_is_not_here_need_no_evaluation(base_of: Any, tmp_path: Path):
    trained = replace(
        random_coefficients(base_of("llava", "llama")), training={"data": "spatialeval:/not/here"}
    )
    assert evaluation_set("auto", trained) is None
    folder = made.spatialeval_parquet(tmp_path)
    here = replace(trained, training={"data": f"spatialeval:{folder}"})
    assert evaluation_set("auto", here) == f"spatialeval:{folder}"
