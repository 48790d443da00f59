"""Accuracies as bars, and the frontier of size against loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .style import INK, MUTED, SERIES, WIDTH, arranged, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBar:
    """One bar: the accuracy of ``model`` on questions of ``kind``, as shares in 0 … 1 with its interval."""

    model: str
    kind: str
    value: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One choice of bits per matrix: its ``size`` in bytes, and what was measured of it; ``uniform`` says so
    where all have the same bits."""

    size: int
    kl: float
    accuracy: float
    chosen: bool
    uniform: str | None = None


def accuracy_bars(rows: Sequence[AccuracyBar]) -> Figure:
    """Bars of accuracy with 95 % intervals, grouped by kind of question, one colour for each model.

    Models and kinds keep the order in which they first come.

    Raises:
        ValueError: no rows, or more models than ``SERIES`` has colours.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    if not 0 < len(models) <= len(SERIES):
        raise ValueError(f"{len(models)} models can't be drawn: 1 to {len(SERIES)} can")
    cases = {row.kind: row.cases for row in rows}
    width = 0.8 / len(models)
    with plot_style():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        ax = figure.subplots()
        for place, model in enumerate(models):
            own = [row for row in rows if row.model == model]
            x = [kinds.index(row.kind) + (place - (len(models) - 1) / 2) * width for row in own]
            _bars(ax, x, own, width * 0.9, SERIES[place])
        ax.set_xticks(range(len(kinds)), [f"{kind}\n{cases[kind]:,} questions" for kind in kinds])
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        ax.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(0, 1.12))
        ax.tick_params(length=0)
        ax.grid(axis="y", color=MUTED, alpha=0.3, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["left", "right", "top"]].set_visible(False)
        square = {"handlelength": 1.0, "handleheight": 1.0}
        figure.legend(loc="outside upper center", ncols=len(models), frameon=False, **square)
        return arranged(figure)


def _bars(ax: Axes, x: list[float], rows: Sequence[AccuracyBar], width: float, colour: str) -> None:
    values = [row.value for row in rows]
    ax.bar(x, values, width, color=colour, label=rows[0].model)
    below = [row.value - row.low for row in rows]
    above = [row.high - row.value for row in rows]
    ax.errorbar(x, values, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for place, row in zip(x, rows, strict=True):
        ax.text(place, row.high + 0.02, f"{100 * row.value:.1f}", ha="center", va="bottom", fontsize=8)


def frontier_chart(points: Sequence[FrontierPoint], reference: float) -> Figure:
    """Accuracy over size for every width of weights that was tried, the chosen one filled; ``reference`` unquantized.

    Raises:
        ValueError: no points.
    """
    from matplotlib.figure import Figure

    if not points:
        raise ValueError("there are no points to draw")
    sizes = [point.size / 1e6 for point in points]
    with plot_style():
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        accuracy, divergence = figure.subplots(2, sharex=True)
        accuracy.axhline(
            100 * reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="unquantized"
        )
        accuracy.plot(
            sizes, [100 * point.accuracy for point in points], color=SERIES[0], marker="o", markersize=4
        )
        divergence.plot(sizes, [point.kl for point in points], color=SERIES[0], marker="o", markersize=4)
        for point in points:
            if point.chosen:
                accuracy.scatter(
                    [point.size / 1e6],
                    [100 * point.accuracy],
                    s=110,
                    color=SERIES[1],
                    zorder=3,
                    label="chosen",
                )
                divergence.scatter([point.size / 1e6], [point.kl], s=110, color=SERIES[1], zorder=3)
        accuracy.set_ylabel("right answers, %")
        divergence.set(ylabel="KL, nats", xlabel="codes and scales, MB", ylim=(0, None))
        for ax in (accuracy, divergence):
            ax.grid(color=MUTED, alpha=0.3, linewidth=0.6)
            ax.spines[["right", "top"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        return arranged(figure)
