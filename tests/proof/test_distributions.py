"""Intervals of the legs that compare distributions."""

from __future__ import annotations

import numpy as np
import pytest

from scale_export.proof.cases import Case, Prompt
from scale_export.proof.distributions import Divergence, divergence

VOCAB = 8
PROMPT = Prompt(name="made", images=(), text="")


def compared(positions: int, changed: int) -> Divergence:
    """Logits over cases of ten positions, with another best token at the first ``changed`` ones."""
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
    return divergence(cases, left, right, 0.1, 0.97)


def test_a_share_is_as_sure_as_there_are_positions():
    """Wilson's lower end for n of n is n / (n + 3.84)."""
    for positions in (70, 700):
        found = compared(positions, 0)
        assert found.top1_agreement == 1 and found.positions == positions and found.passed
        assert found.top1_estimate.low == pytest.approx(positions / (positions + 3.8415), rel=1e-4)


def test_a_divergence_is_as_sure_as_its_cases_agree():
    """All of it in one case of ten: the mean is not known to a factor."""
    everywhere, one = compared(100, 100), compared(100, 10)
    assert one.kl == pytest.approx(everywhere.kl / 10)
    assert everywhere.kl_estimate.low == pytest.approx(everywhere.kl) == everywhere.kl_estimate.high
    low, high = one.kl_estimate.low, one.kl_estimate.high
    assert low == 0 and high is not None and high > 2 * one.kl


def test_requirements_may_name_the_worse_ends():
    found = compared(100, 10).figures("runtime.")
    assert set(found) == {"runtime.kl", "runtime.kl.high", "runtime.top1", "runtime.top1.low"}
    assert (
        found["runtime.kl.high"] > found["runtime.kl"] and found["runtime.top1.low"] < found["runtime.top1"]
    )
