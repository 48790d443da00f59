"""Charts: maps of scalars and sensitivities, accuracy bars, errors against limits; as PNG or as SVG text.

Rules:
    1. The same numbers give the same bytes: no date, no random ids, no settings of the user's matplotlib.
    2. Nothing is told by colour alone: cells, bars and marks carry numbers or shapes too.
    3. What was not measured is drawn as such, never as zero.
    4. SVGs take the ink of the page around them, so that one file serves light and dark.

matplotlib is imported inside the functions, through its object interface: no window, no global figure.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK = "#1c2128"
MUTED = "#868d97"
PASSED = "#2f7fc4"
FAILED = "#d1495b"
SERIES = ("#868d97", "#2f7fc4", "#e08a1e", "#3aa17e", "#a461a8")
"""Colours of grouped bars, told apart in every common kind of colour blindness."""

WIDTH = 4.6
"""Inches of every figure: narrow enough that its text is readable on a phone."""

_FONT = "'DejaVu Sans'"
_WEB_FONT = "system-ui, 'DejaVu Sans', sans-serif"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.dpi": 100,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
}

Values = NDArray[np.floating[Any]]


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


def short_number(value: float) -> str:
    """At most three digits, as text: ``0``, ``0.731``, ``7.2e-7``, ``1.2e6``, ``∞``, ``NaN``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def heat_map(attn: Values, mlp: Values, *, title: str, scope: str) -> Figure:
    """The scalars s of every layer: ``attn [L, H]`` beside ``mlp [L]``, colours centred at 1 (no change).

    ``scope`` is ``last`` or ``all``; an empty title leaves none.

    Raises:
        ValueError: the shapes don't fit.
    """
    acts = {"last": "acting on the last token", "all": "acting on every token"}.get(scope, scope)
    label = f"scalar s, {acts} (1 = base model)"
    return _map(attn, mlp, range(len(mlp)), centre=1.0, title=title, label=label)


def sensitivity_map(attn: Values, mlp: Values, *, layers: Sequence[int], title: str, label: str) -> Figure:
    """Signed sensitivities of the scalars of ``layers``: ``attn [nL, H]``, ``mlp [nL]``, centred at 0.

    NaN marks a scalar that was not probed; it is hatched. ``label`` says what was measured, with its unit.

    Raises:
        ValueError: the shapes don't fit.
    """
    return _map(attn, mlp, layers, centre=0.0, title=title, label=label)


def _map(
    attn: Values, mlp: Values, layers: Sequence[int], *, centre: float, title: str, label: str
) -> Figure:
    from matplotlib.figure import Figure

    if attn.ndim != 2 or mlp.shape != (len(attn),) or len(layers) != len(attn) or attn.size == 0:
        shapes = f"{list(attn.shape)}, {list(mlp.shape)} and {len(layers)} layers"
        raise ValueError(f"a map needs [L, H], [L] and L layers, not {shapes}")
    rows, heads = attn.shape
    row_height = min(0.42, max(0.1, 4.2 / rows))
    height = 1.3 + 0.3 * bool(title) + rows * row_height
    with _style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        widths = {"width_ratios": [heads, max(1.0, heads / 16)], "wspace": 0.02}
        axes = figure.subplots(1, 2, sharey=True, gridspec_kw=widths)
        reach = _reach(attn, mlp, centre)
        numbers = row_height > 0.2 and heads <= 8
        image = _cells(axes[0], attn, centre, reach, numbers=numbers)
        _cells(axes[1], mlp[:, None], centre, reach, numbers=numbers)
        _label_map(axes, heads, layers)
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold")
        missing = not (np.isfinite(attn).all() and np.isfinite(mlp).all())
        place = {"location": "bottom", "aspect": 40, "shrink": 0.9, "pad": 0.1 / height}
        bar = figure.colorbar(image, ax=list(axes), **place)
        bar.set_label(f"{label}; hatched: not measured" if missing else label)
        bar.outline.set_visible(False)
        return _arranged(figure)


def _reach(attn: Values, mlp: Values, centre: float) -> float:
    """How far the colours go from the centre: to the farthest scalar, or to 1 where all lie on the centre."""
    distances = np.abs(np.concatenate([attn.ravel(), mlp.ravel()]).astype(np.float64) - centre)
    finite = distances[np.isfinite(distances)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def _cells(ax: Axes, cells: Values, centre: float, reach: float, *, numbers: bool) -> AxesImage:
    """Paint one block of cells ``[rows, columns]``, with the number in each where there is room."""
    rows, columns = cells.shape
    measured = np.isfinite(cells)
    ax.patch.set(facecolor="none", hatch=None if measured.all() else "////", edgecolor=MUTED, linewidth=0)
    shown = np.where(measured, cells, np.nan)
    image = ax.imshow(shown, cmap="RdBu_r", vmin=centre - reach, vmax=centre + reach, interpolation="nearest")
    ax.set_aspect("auto")
    gap = 1.5 if max(rows, columns) <= 16 else 0.4
    ax.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=gap)
    ax.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=gap)
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (row, column), value in np.ndenumerate(shown):
        if numbers and np.isfinite(value):
            colour = "white" if abs(value - centre) > 0.6 * reach else "black"
            text = f"{value:.2f}" if centre else f"{value:.2g}"
            ax.text(column, row, text.replace("-", "−"), ha="center", va="center", fontsize=8, color=colour)
    return image


def _label_map(axes: Sequence[Axes], heads: int, layers: Sequence[int]) -> None:
    attention, mlp = axes
    columns = _tick_places(heads)
    rows = _tick_places(len(layers))
    attention.set_xticks(columns, [str(c) for c in columns])
    attention.set_yticks(rows, [str(layers[r]) for r in rows])
    attention.set(xlabel="query head", ylabel="decoder layer")
    mlp.set_xticks([0], ["MLP"])
    mlp.tick_params(left=False, labelleft=False)


def _tick_places(count: int) -> list[int]:
    """Every place up to 16, else every 2nd, 4th, … so that at most 16 are named."""
    step = 1
    while count > 16 * step:
        step *= 2
    return list(range(0, count, step))


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
    with _style():
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
        return _arranged(figure)


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
    with _style():
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
        return _arranged(figure)


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
    with _style():
        figure = Figure(figsize=(WIDTH, 0.6 + 0.42 * len(legs)), layout="constrained")
        ax = figure.subplots()
        ax.set(xscale="log", xlim=(left, right), ylim=(len(legs) - 0.6, -0.7))
        for row, (leg, share) in enumerate(zip(legs, shares, strict=True)):
            named = row == 0 or legs[row - 1].leg != leg.leg
            _leg_words(ax, row, leg, named=named)
            _leg_track(ax, row, share, leg.passed, (left, right))
        _label_legs(ax, left, right)
        return _arranged(figure)


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


def _arranged(figure: Figure) -> Figure:
    """The figure with its layout settled: left to itself, it would move a little each time it is drawn."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG on white, 160 dots per inch, the same bytes for the same numbers."""
    with _style():
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def to_svg(figure: Figure, *, name: str = "figure") -> str:
    """The figure as one ``<svg>`` element for a page or a file: transparent, in the page's ink and font.

    ``name`` keeps the ids of several drawings on one page apart.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _style(salt=f"scale-export/{name}"):
        # The images inside get four times the dots of the drawing: crisp on a dense screen and in print.
        figure.savefig(buffer, format="svg", transparent=True, dpi=288, metadata=no_metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip().replace(INK, "currentColor").replace(_FONT, _WEB_FONT)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    # matplotlib names every group alike in every figure; ids on one page must differ.
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)


def _style(salt: str = "scale-export") -> AbstractContextManager[None]:
    """matplotlib's own defaults with ours on top, whatever the user's configuration says (rule 1)."""
    import matplotlib.style

    return matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": salt}])
