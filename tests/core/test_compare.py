"""Comparisons that hold nothing: what isn't finite, and what compared nothing, is within no limit."""

from __future__ import annotations

import numpy as np
import pytest

from scale_export.core.compare import LargestError, relative_error, within_limit, worst_of

NAN, INF = float("nan"), float("inf")
LOGITS = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1.1])
def test_no_limit_holds_what_is_not_finite(value: float) -> None:
    assert not within_limit(value, 1.0)
    assert not LargestError(metric="error", value=value, limit=1.0).passed


@pytest.mark.parametrize("limit", [NAN, INF, -INF])
def test_a_limit_that_is_not_finite_holds_nothing(limit: float) -> None:
    assert not within_limit(0.0, limit)


def test_a_limit_is_kept_up_to_itself() -> None:
    assert within_limit(1.0, 1.0) and within_limit(0.0, 1.0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("side", [0, 1])
def test_logits_that_are_not_finite_are_infinitely_far(bad: float, side: int) -> None:
    sides = [LOGITS.copy(), LOGITS.copy()]
    sides[side][0, 1] = bad
    assert relative_error(*sides) == INF
    both = np.full_like(LOGITS, bad)
    assert relative_error(both, both) == INF


def test_zeros_are_near_zeros_alone() -> None:
    zeros = np.zeros_like(LOGITS)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, LOGITS) == INF
    assert relative_error(LOGITS, zeros) == 1


def test_nothing_is_near_nothing() -> None:
    assert relative_error(LOGITS[:0], LOGITS[:0]) == INF
    assert worst_of([]) == INF


def test_the_worst_of_errors_sees_nan_wherever_it_stands() -> None:
    assert worst_of([0.1, 0.3, 0.2]) == 0.3
    for errors in ([NAN, 0.1], [0.1, NAN], [0.1, NAN, INF]):
        assert worst_of(errors) == INF
