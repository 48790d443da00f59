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
    positions: int, changed: int, *, max_kl: float = 0.1, min_top1: float = 0.97, **options: Any
) -> Divergence:
    """Sharp logits over cases of ten positions, with another best token at the first ``changed`` ones."""
    logits = np.zeros((positions, VOCAB), np.float32)
    logits[:, 1] = 0.01
    other = logits.copy()
    other[:changed, 2] = 0.02
    cases, left, right = [], [], []
    for start in range(0, positions, 10):
        rows = logits[start : start + 10]
        cases.append(Case(prompt=PROMPT, inputs={}, tokens=(1,) * (len(rows) - 1), logits=rows))
        left.append(rows)
        right.append(other[start : start + 10])
    return divergence(cases, left, right, max_kl, min_top1, **options)


def test_all_the_same_is_a_pass_only_where_there_are_enough():
    """Wilson's lower end for n of n is n / (n + 3.84): 124 positions for 97 %."""
    few, enough = compared(120, 0), compared(130, 0)
    assert few.top1_agreement == enough.top1_agreement == 1
    assert (few.passed, few.top1_within, few.kl_within) == (False, "undecided", "within")
    assert few.undecided and "120 positions" in few.undecided
    assert (enough.passed, enough.undecided) == (True, None)


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
    """The shipped model's answers have 70 positions, and int8's limit of 97 % needs 124 at the least."""
    legs = fold(TINY, "cpu", out=tmp_path / "package", precision="int8", eval_limit=4).parity["legs"]
    for name in ("quantization", "runtime"):
        leg = legs[name]
        assert leg["passed"] and leg["undecided"] is None
        assert leg["steps"] >= 124 and leg["cases"] > MOST_PROMPTS
        assert leg["top1_interval"][0] >= leg["limits"]["top1_agreement"]
        assert leg["kl_interval"][1] <= leg["limits"]["kl"]


def test_what_stays_undecided_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "ROUNDS", ())
    outcome = fold(TINY, "cpu", out=tmp_path / "package", precision="int8", eval_limit=4)
    assert not outcome.passed
    assert "positions are too few" in outcome.parity["legs"]["runtime"]["undecided"]


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
