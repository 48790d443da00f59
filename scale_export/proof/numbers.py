"""Numbers as reports write them; what was not measured is said in words."""

from __future__ import annotations

from scale_export.charts.style import short_number
from scale_export.core.intervals import Estimate


def human_bytes(size: int) -> str:
    """``980 bytes``, ``12.3 kB``, ``4.56 GB``: decimal units, three digits."""
    if size < 1000:
        return f"{size} bytes"
    power = next((p for p in range(1, 4) if size / 1000**p < 999.5), 4)
    value, unit = size / 1000**power, ("kB", "MB", "GB", "TB")[power - 1]
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def number(value: float | None) -> str:
    """A count with its thousands apart, anything else in few digits."""
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else short_number(value)


def percent(share: float | None) -> str:
    """A share with one decimal of a percent, more where that would read as an untrue 0 or 100."""
    if share is None:
        return "not measured"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    decimals = 1
    while decimals < 9 and f"{100 * share:.{decimals}f}".rstrip("0") in ("0.", "-0.", "100."):
        decimals += 1
    return f"{100 * share:.{decimals}f} %".replace("-", "−")


def points(difference: float | None) -> str:
    """A difference of shares in percentage points."""
    return "not measured" if difference is None else f"{100 * difference:.2f} points".replace("-", "−")


def interval(share: Estimate | None, decimals: int, level: int = 95) -> str:
    """A share's interval in percent, ``level`` % by its making, in brackets; nothing where it isn't bounded."""
    if share is None or share.low is None or share.high is None:
        return ""
    return f" ({level} %: {100 * share.low:.{decimals}f} … {100 * share.high:.{decimals}f})".replace("-", "−")


def signed(value: float | None) -> str:
    """A number that may be negative, with a minus sign."""
    return f"−{number(-value)}" if value is not None and value < 0 else number(value)


def yes(value: bool) -> str:
    """A check's outcome in a word."""
    return "yes" if value else "no"
