"""Settings and files that every chart shares, and their rules.

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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
_STYLE: dict[str, str | float | bool] = {
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

Values = NDArray[np.floating]


def short_number(value: float) -> str:
    """At most three digits, as text: ``0``, ``0.731``, ``7.2e-7``, ``1.2e6``, ``∞``, ``NaN``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def arranged(figure: Figure) -> Figure:
    """The figure with its layout settled: left to itself, it would move a little each time it is drawn."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG on white, 160 dots per inch, the same bytes for the same numbers."""
    with plot_style():
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})


def to_svg(figure: Figure, *, name: str = "figure") -> str:
    """The figure as one ``<svg>`` element for a page or a file: transparent, in the page's ink and font.

    ``name`` keeps the ids of several drawings on one page apart.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plot_style(salt=f"scale-export/{name}"):
        # The images inside get four times the dots of the drawing: crisp on a dense screen and in print.
        figure.savefig(buffer, format="svg", transparent=True, dpi=288, metadata=no_metadata)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].strip().replace(INK, "currentColor").replace(_FONT, _WEB_FONT)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    # matplotlib names every group alike in every figure; ids on one page must differ.
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)


def plot_style(salt: str = "scale-export") -> AbstractContextManager[None]:
    """matplotlib's own defaults with ours on top, whatever the user's configuration says (rule 1)."""
    import matplotlib.style

    return matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": salt}])
