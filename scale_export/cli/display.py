"""What a terminal shows: the parity table, figures and verdicts, and nothing of libraries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from scale_export.core.errors import EXIT_OK
from scale_export.core.terminal import Terminal, printable

if TYPE_CHECKING:
    from scale_export.package.requirements import Checked
    from scale_export.proof.report import ParityReport

console = Terminal()


def show_parity(report: ParityReport) -> None:
    """The parity report as a terminal table, a line for each row of a leg."""
    table = Table(title="parity against PyTorch ScAle")
    for heading in ("leg", "measured", "value", "limit", "on", "verdict"):
        table.add_column(heading)
    for name, leg in report.checks.items():
        if leg is None:
            table.add_row(name, "", "", "", "", verdict(None))
            continue
        words = report.verdict(name)
        style = "dim" if leg.passed is None else "bold yellow" if words == "undecided" else None
        shown = verdict(leg.passed) if style is None else Text(words, style)
        for number, row in enumerate(leg.rows()):
            value = Text(row.value, "bold red") if row.beyond else row.value
            ends = ("", "", "") if number else (name, leg.counted, shown)
            table.add_row(ends[0], row.label, value, row.limit, *ends[1:])
    console.print(table)
    for line in _answers(report):
        say(line)
    if report.attribution:
        parts = ", ".join(f"{step} {figure(part.kl)}" for step, part in report.attribution.parts.items())
        say(f"KL from PyTorch ScAle along its answers {figure(report.attribution.whole.kl)}: {parts}")
    say(f"Executed by {report.executed_by}")
    for missing in report.not_checked:
        say(f"Not checked: {missing}")


def show_requirements(requirements: Iterable[Checked]) -> None:
    """A line for each requirement: what was asked, its verdict, and what was measured."""
    for checked in requirements:
        say(
            f"Required {checked.requirement}: ",
            verdict(checked.passed),
            f", measured {figure(checked.value)}",
        )


def _answers(report: ParityReport) -> Iterator[str]:
    """What was answered on the parity prompts, and on the questions of the task leg."""
    agreement, task = report.answer_agreement, report.task
    if agreement and agreement.share is not None:
        yield f"Answers as PyTorch ScAle's on {agreement.cases} parity prompts: {agreement.share:.1%}"
    if task:
        shares = {who: accuracy.spatial for who, accuracy in task.accuracy.items()}
        words = ", ".join(f"{who} {share.value:.1%}" for who, share in shares.items() if share)
        yield f"Spatial questions right: {words or 'not measured'}"
        yield from (f"{label}: {value}" for label, value in task.facts())


def figure(value: float | None) -> str:
    """Three digits, or a dash where nothing was measured."""
    return "—" if value is None else f"{value:.3g}"


def verdict(passed: bool | None) -> Text:
    """A leg's verdict in colour."""
    words, style = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("not checked", "dim")}[
        passed
    ]
    return Text(words, style)


def say(*parts: str | Text) -> None:
    """One line for people, whatever a name in it holds."""
    line = Text.assemble(*(printable(part) if isinstance(part, str) else part for part in parts))
    console.print(line, soft_wrap=True)


def show(as_object: Mapping[str, object], lines: Sequence[str], as_json: bool) -> int:
    """Print either form of a result."""
    if as_json:
        print(json.dumps(as_object))
    else:
        for line in lines:
            say(line)
    return EXIT_OK


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries' progress bars and advice off a user's screen, within."""
    from scale_export.compat.transformers import off_the_screen

    with off_the_screen():
        yield
