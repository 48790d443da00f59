"""The rows of a leg: what was measured, its limit in words, and the error for the chart.

Terminal and page show the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from scale_export.charts.errors import LegError
from scale_export.charts.style import short_number
from scale_export.core.compare import LargestError

from .numbers import percent, yes

NOT_CHECKED = "not checked"
NO_LIMIT = "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: ``beyond`` says that this is what makes its leg fail; ``error`` is None where nothing is to be drawn."""

    label: str
    value: str
    limit: str
    beyond: bool
    error: LegError | None = None


def at_most(leg: str, label: str, value: float | None, limit: float | None) -> Row:
    """A number that should be small; None was not measured, or has no limit."""
    error = LegError(leg=leg, metric=label, value=value, limit=limit)
    return Row(
        label=label,
        value=NOT_CHECKED if value is None else short_number(value),
        limit=NO_LIMIT if limit is None else f"≤ {short_number(limit)}",
        beyond=error.passed is False,
        error=error,
    )


def within(leg: str, found: LargestError, label: str | None = None) -> Row:
    """An error against its limit, called by its metric unless it has a ``label``."""
    return at_most(leg, label or found.metric, found.value, found.limit)


def at_least(leg: str, label: str, share: float | None, limit: float | None, *, lost: str) -> Row:
    """A share that should be 1: the chart shows what is missing from it, called ``lost``."""
    error = LegError(
        leg=leg,
        metric=lost,
        value=None if share is None else 1 - share,
        limit=None if limit is None else 1 - limit,
    )
    return Row(
        label=label,
        value=NOT_CHECKED if share is None else percent(share),
        limit=NO_LIMIT if limit is None else f"≥ {100 * limit:.5g} %",
        beyond=error.passed is False,
        error=error,
    )


def holds(label: str, found: bool) -> Row:
    """Something that must be so."""
    return Row(label=label, value=yes(found), limit="yes", beyond=not found)
