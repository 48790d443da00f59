"""Bars of accuracy and the frontier of a search: every value, model and case is named."""

from __future__ import annotations

import numpy as np
import pytest

from scale_export.charts.accuracy import AccuracyBar, FrontierPoint, accuracy_bars, frontier_chart
from scale_export.charts.style import SERIES, to_svg
from tests.helpers.figures import bars, texts


def test_accuracy_bars_say_their_values_models_and_cases():
    figure = accuracy_bars(bars())
    found = texts(figure)
    assert found.count("42.1") == found.count("73.3") == found.count("72.8") == 2
    assert {"base", "PyTorch ScAle", "export", "spatial", "other", "768 questions"} <= set(found)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == pytest.approx([0.421, 0.421, 0.733, 0.733, 0.728, 0.728])
    whiskers = [line.get_segments() for line in figure.axes[0].collections]
    assert whiskers[0][0][:, 1] == pytest.approx([0.391, 0.451])
    with pytest.raises(ValueError, match="0 models"):
        accuracy_bars([])
    crowd = [AccuracyBar(model=str(i), kind="all", value=0.5, low=0.4, high=0.6, cases=9) for i in range(6)]
    with pytest.raises(ValueError, match=f"1 to {len(SERIES)} can"):
        accuracy_bars(crowd)


def test_the_frontier_shows_every_point_and_marks_the_chosen_one():
    points = [
        FrontierPoint(size=1_000_000 - 40_000 * i, kl=0.001 * i, accuracy=0.92 - 0.002 * i, chosen=i == 3)
        for i in range(8)
    ]
    figure = frontier_chart(points, 0.93)
    accuracy, divergence = figure.axes
    np.testing.assert_allclose(accuracy.lines[1].get_xydata()[:, 0], [p.size / 1e6 for p in points])
    np.testing.assert_allclose(divergence.lines[0].get_xydata()[:, 1], [p.kl for p in points])
    for ax in figure.axes:
        np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 0], [points[3].size / 1e6])
    assert to_svg(figure).count("<svg") == 1
    with pytest.raises(ValueError, match="no points"):
        frontier_chart([], 0.9)
