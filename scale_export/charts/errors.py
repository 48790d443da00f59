"""Each leg's error against its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .style import FAILED, MUTED, PASSED, WIDTH, arranged, plot_style, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class LegError:
    """One measured error against its limit, both in ``metric``'s unit.

    ``value`` None means not checked; ``limit`` None means reported without a limit.
    """

    leg: str
    metric: str
    value: float | None
    limit: float | None

    @property
    def passed(self) -> bool | None:
        """Whether the error is within its limit; None where one of them is missing."""
        if self.value is None or self.limit is None:
            return None
        return self.value <= self.limit


def leg_chart(legs: Sequence[LegError]) -> Figure:
    """Every error as a share of its limit, on a log axis; tracks turn red where an error is too large.

    A circle is within the limit, a cross beyond it. An error of 0 stands at the left edge. What was not
    checked, or has no limit, has a dotted track without a mark and says so.

    Raises:
        ValueError: no legs.
    """
    from matplotlib.figure import Figure

    if not legs:
        raise ValueError("there are no legs to draw")
    shares = [_share(leg) for leg in legs]
    drawn = [share for share in shares if share is not None and 0 < share < math.inf]
    left = 10.0 ** max(-6, min(-3, math.floor(math.log10(min(drawn, default=1)))))
    right = 10.0 ** max(1, min(6, math.ceil(math.log10(max(drawn, default=1)))))
    with plot_style():
        figure = Figure(figsize=(WIDTH, 0.6 + 0.42 * len(legs)), layout="constrained")
        ax = figure.subplots()
        ax.set(xscale="log", xlim=(left, right), ylim=(len(legs) - 0.6, -0.7))
        for row, (leg, share) in enumerate(zip(legs, shares, strict=True)):
            named = row == 0 or legs[row - 1].leg != leg.leg
            _leg_words(ax, row, leg, named=named)
            _leg_track(ax, row, share, leg.passed, (left, right))
        _label_legs(ax, left, right)
        return arranged(figure)


def _share(leg: LegError) -> float | None:
    """The error in units of its limit; infinite where it is beyond a limit of 0 or not a number."""
    if leg.value is None or leg.limit is None:
        return None
    if math.isnan(leg.value):
        return math.inf
    if leg.limit == 0:
        return 0.0 if leg.value <= 0 else math.inf
    return leg.value / leg.limit


def _leg_words(ax: Axes, row: int, leg: LegError, *, named: bool) -> None:
    """The text above a track: the leg's name, once, and what was measured."""
    height = row - 0.34
    across = ("axes fraction", "data")
    if named:
        ax.annotate(leg.leg, (0, height), xycoords=across, fontweight="bold", va="center")
    if leg.value is None:
        ax.annotate("not checked", (1, height), xycoords=across, ha="right", va="center", style="italic")
        return
    limit = "no limit" if leg.limit is None else f"limit {short_number(leg.limit)}"
    words = f"{leg.metric}  {short_number(leg.value)}  ({limit})"
    ax.annotate(words, (1, height), xycoords=across, ha="right", va="center", fontsize=8)


def _leg_track(
    ax: Axes, row: int, share: float | None, passed: bool | None, ends: tuple[float, float]
) -> None:
    """The track of one error, red beyond the limit, with its mark; dotted without a share."""
    left, right = ends
    if share is None:
        ax.hlines(row, left, right, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        return
    place = min(max(share, left), right)
    colour, mark, size = (PASSED, "o", 50) if passed else (FAILED, "X", 80)
    ax.hlines(row, left, 1, color=MUTED, alpha=0.28, linewidth=5)
    ax.hlines(row, 1, right, color=FAILED, alpha=0.25, linewidth=5)
    ax.hlines(row, left, place, color=colour, linewidth=5)
    ax.vlines(1, row - 0.14, row + 0.14, color=FAILED, linewidth=1.5)
    ax.scatter([place], [row], s=size, marker=mark, color=colour, zorder=3, clip_on=False)


def _label_legs(ax: Axes, left: float, right: float) -> None:
    powers = range(round(math.log10(left)), round(math.log10(right)) + 1)
    step = 2 if len(powers) > 7 else 1
    named = [power for power in powers if power % step == 0]
    ax.set_xticks([10.0**p for p in named], [_power_name(p) for p in named])
    ax.set_xticks([], minor=True)
    ax.set_yticks([])
    ax.set_xlabel("error as a share of its limit, log scale")
    ax.tick_params(length=3)
    ax.spines[["left", "right", "top"]].set_visible(False)


def _power_name(power: int) -> str:
    if power == 0:
        return "limit"
    return f"{10**power}×" if power > 0 else f"1/{10**-power:,}"
