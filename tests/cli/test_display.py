"""The parity table on a terminal: every row of every leg, the same words as on the page."""

from __future__ import annotations

import pytest

from scale_export.cli import display
from scale_export.core.records import NotChecked
from scale_export.proof.report import ParityReport
from scale_export.report.legs import leg_views
from tests.helpers import parity as made
from tests.helpers.parity import parity

LOST = {"attribution": made.attribution(), "answer_agreement": made.answers(share=0.75)}


def shown(report: ParityReport, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a wide terminal shows."""
    monkeypatch.setattr(display.console, "width", 220)
    with display.console.capture() as captured:
        display.show_parity(report)
    return captured.get()


def lines_of(text: str) -> list[list[str]]:
    """The cells of each line of the table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


@pytest.mark.parametrize("absent", [None, "fold", "quantization", "task"])
def test_the_terminal_has_the_rows_of_the_page(monkeypatch: pytest.MonkeyPatch, absent: str | None):
    report = parity(**LOST, **({absent: None} if absent else {}))
    text = shown(report, monkeypatch)
    expected = [[row.label, row.value, row.limit] for view in leg_views(report) for row in view.rows]
    found = lines_of(text)
    assert [cells[1:4] for cells in found if cells[1]] == expected
    assert [(cells[0], cells[5]) for cells in found if cells[0]] == [
        (name, "passed" if leg else "not checked") for name, leg in report.checks.items()
    ]
    assert "on 24 parity prompts: 75.0%" in text and "Executed by a test" in text
    assert ("Spatial questions right: base 42.1%" in text) == (absent != "task")


def test_verdicts_and_reasons_are_said(monkeypatch: pytest.MonkeyPatch):
    report = parity(
        runtime=made.runtime(0.5),
        quantization=made.quantization(max_kl=None, min_top1=None),
        preprocessing=None,
        not_checked=[
            NotChecked("preprocessing", "no processor: none was written"),
            NotChecked("device", "off"),
        ],
    )
    text = shown(report, monkeypatch)
    verdicts = {cells[0]: cells[5] for cells in lines_of(text) if cells[0]}
    assert verdicts["runtime"] == "FAILED" and verdicts["quantization"] == "no limit"
    assert "Not checked: preprocessing: no processor: none was written" in text
    assert "Not checked: device: off" in text and "parity prompts" not in text
