"""The parity legs as the report page shows them: names, verdicts, reasons, and the rows that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scale_export.charts.errors import LegError
from scale_export.proof.legs import Leg
from scale_export.proof.report import MEANINGS, ParityReport
from scale_export.proof.rows import NO_LIMIT, NOT_CHECKED, Row

VERDICTS: Mapping[bool | None, str] = {True: "passed", False: "failed", None: NO_LIMIT}


@dataclass(frozen=True, slots=True, kw_only=True)
class LegView:
    """One leg as the page shows it; ``reason`` says why it was not checked, and then it has no rows."""

    name: str
    meaning: str
    verdict: str
    reason: str
    counted: str
    rows: tuple[Row, ...]

    def errors(self) -> list[LegError]:
        """What the chart draws of it."""
        missing = LegError(leg=self.name, metric="", value=None, limit=None)
        return [row.error for row in self.rows if row.error] if self.rows else [missing]


def leg_views(report: ParityReport) -> list[LegView]:
    """The legs in the order of the pipeline, then those of a checkpoint."""
    return [_leg_view(name, leg, report.reason(name)) for name, leg in report.legs.items()]


def _leg_view(name: str, leg: Leg | None, reason: str) -> LegView:
    return LegView(
        name=name,
        meaning=MEANINGS[name],
        verdict=NOT_CHECKED if leg is None else VERDICTS[leg.passed],
        reason=reason,
        counted="" if leg is None else leg.counted,
        rows=() if leg is None else tuple(leg.rows()),
    )


def headline(passed: bool, views: Sequence[LegView]) -> str:
    """The verdict as one sentence, with the legs that failed or did not run; ``passed`` is the whole report's."""
    failed = [view.name for view in views if view.verdict == "failed"]
    unchecked = [view.name for view in views if view.verdict == NOT_CHECKED]
    within = sum(view.verdict == "passed" for view in views)
    left_out = f" Not checked: {', '.join(unchecked)}." if unchecked else ""
    if failed:
        beyond = "leg is beyond its" if len(failed) == 1 else "legs are beyond their"
        return f"The {' and '.join(failed)} {beyond} limits.{left_out}"
    if not passed:
        return f"No leg is beyond its limit, but the checks as a whole did not pass.{left_out}"
    whole = "leg is within its" if within == 1 else "legs are within their"
    return f"{within} {whole} limits.{left_out}"
