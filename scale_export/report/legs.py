"""The parity legs as the report page shows them: names, verdicts, reasons, and the rows that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scale_export.charts.errors import LegError
from scale_export.proof.legs import Leg
from scale_export.proof.report import MEANINGS, ParityReport, Verdict
from scale_export.proof.rows import NOT_CHECKED, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class LegView:
    """One leg as the page shows it; ``reason`` says why it was not checked, and then it has no rows."""

    name: str
    meaning: str
    verdict: Verdict
    reason: str
    counted: str
    rows: tuple[Row, ...]

    def errors(self) -> list[LegError]:
        """What the chart draws of it."""
        missing = LegError(leg=self.name, metric="", value=None, limit=None)
        return [row.error for row in self.rows if row.error] if self.rows else [missing]


def leg_views(report: ParityReport) -> list[LegView]:
    """The legs in the order of the pipeline, then those of a checkpoint, then the answers to the parity prompts."""
    return [_leg_view(report, name, leg) for name, leg in report.checks.items()]


def _leg_view(report: ParityReport, name: str, leg: Leg | None) -> LegView:
    return LegView(
        name=name,
        meaning=leg.meaning if leg else MEANINGS[name],
        verdict=report.verdict(name),
        reason=report.reason(name),
        counted="" if leg is None else leg.counted,
        rows=() if leg is None else tuple(leg.rows()),
    )


def headline(passed: bool, views: Sequence[LegView]) -> str:
    """The verdict as one sentence, with the legs that failed or did not run; ``passed`` is the whole report's."""
    failed = [view.name for view in views if view.verdict == "failed"]
    undecided = [view.name for view in views if view.verdict == "undecided"]
    unchecked = [view.name for view in views if view.verdict == NOT_CHECKED]
    within = sum(view.verdict == "passed" for view in views)
    left_out = f" Not checked: {', '.join(unchecked)}." if unchecked else ""
    if failed:
        beyond = "leg is beyond its" if len(failed) == 1 else "legs are beyond their"
        return f"The {' and '.join(failed)} {beyond} limits.{left_out}"
    if undecided:
        had = (
            "leg was measured on too few positions for its"
            if len(undecided) == 1
            else "legs were measured on too few positions for their"
        )
        return f"The {' and '.join(undecided)} {had} limits.{left_out}"
    if not passed:
        return f"No leg is beyond its limit, but the checks as a whole did not pass.{left_out}"
    whole = "leg is within its" if within == 1 else "legs are within their"
    return f"{within} {whole} limits.{left_out}"
