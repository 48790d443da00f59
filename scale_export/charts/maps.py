"""Heat maps of scalars and of layers' sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .style import MUTED, WIDTH, Values, arranged, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


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
    with plot_style():
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
        return arranged(figure)


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
