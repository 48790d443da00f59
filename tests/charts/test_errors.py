"""Errors of the legs beside their limits: what passed, what did not, what was not checked."""

from __future__ import annotations

import pytest
from matplotlib.collections import PathCollection

from scale_export.charts.errors import leg_chart
from scale_export.charts.style import FAILED, PASSED, to_svg
from tests.helpers.figures import leg, texts


@pytest.mark.parametrize(
    ("value", "limit", "passed", "words"),
    [
        (1e-6, 1e-5, True, "KL 1e-6 (limit 1e-5)"),
        (2e-5, 1e-5, False, "KL 2e-5 (limit 1e-5)"),
        (0.0, 1.0, True, "KL 0 (limit 1)"),
        (0.0, 0.0, True, "KL 0 (limit 0)"),
        (0.1, 0.0, False, "KL 0.1 (limit 0)"),
        (-0.02, 0.05, True, "KL -0.02 (limit 0.05)"),
        (float("inf"), 1.0, False, "KL ∞ (limit 1)"),
        (float("nan"), 1.0, False, "KL NaN (limit 1)"),
        (1e-14, 1.0, True, "KL 1e-14 (limit 1)"),
        (0.3, None, None, "KL 0.3 (no limit)"),
        (None, 1e-5, None, "not checked"),
    ],
)
def test_leg_chart_marks_what_passed_and_what_did_not(value, limit, passed, words):
    only = leg(value, limit)
    figure = leg_chart([only])
    assert only.passed is passed
    assert [" ".join(t.split()) for t in texts(figure)][-2:] == ["fold", words]
    svg = to_svg(figure)
    marks = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert (len(marks) == 1) is (passed is not None)
    assert (f"stroke: {PASSED}" in svg) is (passed is True)
    if passed is False:
        assert f"fill: {FAILED}" in svg
    left, right = figure.axes[0].get_xlim()
    for mark in marks:
        (place, _), (_, top) = mark.get_offsets()[0], figure.axes[0].get_ylim()
        assert left <= place <= right
        assert bool(place <= 1) is passed
        assert top < 0


def test_leg_chart_names_a_leg_once_and_never_draws_the_unchecked():
    figure = leg_chart([leg(0.1, 1, "quantization"), leg(0.2, 1, "quantization"), leg(None, None, "task")])
    found = texts(figure)
    assert found.count("quantization") == 1
    assert found.count("not checked") == 1
    assert "0" not in found
    with pytest.raises(ValueError, match="no legs"):
        leg_chart([])
