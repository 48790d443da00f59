"""Verdicts on distributions: only where the whole interval lies on one side of the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import fold
from scale_export.coefficients.file import load_coefficients
from scale_export.model.base import open_base
from scale_export.proof import judging
from scale_export.proof.cases import MOST_PROMPTS, ROUNDS, Case, Prompt, more_cases
from scale_export.proof.distributions import Divergence, divergence

TINY = Path(__file__).parents[2] / "examples/tiny_vlm/spatial.safetensors"
VOCAB = 8
PROMPT = Prompt(name="made", images=(), text="")


def compared(
    positions: int,
    changed: int,
    *,
    undecided: int = 0,
    max_kl: float = 1.0,
    min_top1: float = 0.97,
    **options: Any,
) -> Divergence:
    """Cases of ten positions: another best token at the first ``changed`` ones, near ties at the last ``undecided``."""
    logits = np.zeros((positions, VOCAB), np.float32)
    logits[: positions - undecided, 1] = 1.0
    logits[positions - undecided :, 1] = 0.01
    other = logits.copy()
    other[:changed, 2] = 1.1
    cases, left, right = [], [], []
    for start in range(0, positions, 10):
        rows = logits[start : start + 10]
        cases.append(Case(prompt=PROMPT, inputs={}, tokens=(1,) * (len(rows) - 1), logits=rows))
        left.append(rows)
        right.append(other[start : start + 10])
    return divergence(cases, left, right, max_kl, min_top1, **options)


def test_all_the_same_is_a_pass_only_where_there_are_enough():
    """Wilson's lower end for n of n is n / (n + 2.71): 88 positions for 97 %."""
    few, enough = compared(80, 0), compared(90, 0)
    assert few.top1_agreement == enough.top1_agreement == 1
    assert (few.passed, few.top1_within, few.kl_within) == (False, "undecided", "within")
    assert few.undecided and "80 positions, 80 of them decided" in few.undecided
    assert (enough.passed, enough.undecided) == (True, None)


def test_only_decided_positions_are_held_to_the_limit():
    """A random model's best tokens change at one position in twenty, all of them ties."""
    changed = compared(200, 200, undecided=200, min_top1=0.97)
    assert (changed.top1_agreement, changed.decided_agreement, changed.decided_positions) == (0, None, 0)
    assert (changed.top1_within, changed.passed) == ("no limit", True), "its divergence alone is judged"
    assert changed.figures("")["decided"] is None and changed.to_json(1)["decided_interval"] is None
    mixed = compared(200, 20, undecided=100)
    assert (mixed.positions, mixed.decided_positions) == (200, 100)
    assert (mixed.top1_agreement, mixed.decided_agreement) == (0.9, 0.8)
    assert mixed.top1_within == "beyond" and compared(200, 0, undecided=150).top1_within == "undecided"


def test_a_limit_that_leaves_no_room_is_held_by_value():
    """No interval clears 1, or 0: of runtimes with one set of kernels."""
    assert compared(20, 0, min_top1=1.0, max_kl=0.0).passed is True
    assert compared(20, 1, min_top1=1.0).top1_within == "beyond"
    assert compared(20, 1, max_kl=0.0).kl_within == "beyond"


@pytest.mark.parametrize(
    ("changed", "within"),
    [(5, "within"), (22, "undecided"), (35, "undecided"), (60, "beyond")],
)
def test_a_share_is_judged_by_its_interval(changed: int, within: str):
    """Of a thousand positions with 97 % asked."""
    found = compared(1000, changed)
    assert found.top1_within == within and found.passed is (within == "within")
    assert (found.undecided is None) == (within != "undecided")


def test_a_divergence_is_judged_by_its_interval_over_cases():
    """All of it in one case of ten: the mean is not known to a factor."""
    everywhere, one = compared(100, 100, min_top1=0.0), compared(100, 10, min_top1=0.0)
    mean = everywhere.kl
    assert one.kl == pytest.approx(mean / 10)
    assert one.kl_estimate.low == 0 and one.kl_estimate.high > 2 * one.kl
    assert compared(100, 10, min_top1=0.0, max_kl=2 * one.kl).kl_within == "undecided"
    assert compared(100, 10, min_top1=0.0, max_kl=mean).kl_within == "within"
    assert compared(100, 100, min_top1=0.0, max_kl=mean / 2).kl_within == "beyond"


def test_one_figure_beyond_its_limit_decides():
    found = compared(100, 60)
    assert found.top1_within == "beyond" and found.passed is False and found.undecided is None
    assert compared(20, 0, by_value=True).passed is True, "where no more can be had"


def test_questions_are_asked_until_the_limit_is_cleared(tmp_path: Path):
    """The shipped model's first answers have 72 positions, and int8's limit of 97 % needs 88 at the least."""
    legs = fold(TINY, "cpu", out=tmp_path / "package", precision="int8", eval_limit=4).parity["legs"]
    for name in ("quantization", "runtime"):
        leg = legs[name]
        assert leg["passed"] and leg["undecided"] is None
        assert leg["decided_steps"] >= 88 and leg["cases"] > MOST_PROMPTS
        assert leg["decided_interval"][0] >= leg["limits"]["decided_agreement"]
        assert leg["kl_interval"][1] <= leg["limits"]["kl"]


def test_what_stays_undecided_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "ROUNDS", ())
    outcome = fold(TINY, "cpu", out=tmp_path / "package", precision="int8", eval_limit=4)
    assert not outcome.passed
    assert "are too few to tell" in outcome.parity["legs"]["runtime"]["undecided"]


def test_rounds_ask_each_question_once_and_end_with_the_answer():
    coefficients = load_coefficients(TINY)
    base = open_base(coefficients.base.base_model, relative_to=TINY.parent)
    first, second = (
        more_cases(base.model, base.processor, coefficients, number, base.rules) for number in (0, 1)
    )
    assert (len(first), len(second)) == ROUNDS[:2]
    names = [case.prompt.name for case in first + second]
    assert len(set(names)) == len(names)
    for case in first + second:
        assert len(case.logits) == case.answer_positions == len(case.tokens) + 1
