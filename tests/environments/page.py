"""What was measured, as the table of ``docs/compatibility.md`` between its markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environments import PYTHONS, Environment, asked_for, environments

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"
RESULTS = Path(__file__).with_name("results.json")
START, END = "<!-- measured: make compat -->", "<!-- end -->"
NOT_RUN = "not run"

Row = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]


def written(page: str, results: Results) -> str:
    """The page with its table made anew.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, _, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {START} … {END}")
    return f"{before}{START}\n{table(results)}\n{END}{after}"


def table(results: Results) -> str:
    """A row per environment and Python; what was measured for other versions than are asked for now is not run."""
    lines = ["| environment | Python | versions | result |", "| --- | --- | --- | --- |"]
    for environment in environments():
        for python in PYTHONS:
            found = results.get(environment.name, {}).get(python)
            if found and found["asked"] != asked_for(environment, python):
                found = None
            cells = [environment.name, python, versions(found), verdict(environment, found)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def versions(found: Mapping[str, Any] | None) -> str:
    """``numpy 2.4.6, …`` of what was installed."""
    return (
        ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
        if found
        else "—"
    )


def verdict(environment: Environment, found: Mapping[str, Any] | None) -> str:
    """What one environment came to, in a few words."""
    if not found:
        return NOT_RUN
    return (opened if environment.check == "packages" else proved)(found["rows"])


def opened(rows: Sequence[Row]) -> str:
    """Of packages: how many answer as where they were folded, how far off the logits are, and what failed."""
    good = [row for row in rows if row.get("answer") and row.get("selftest")]
    same = sum(bool(row.get("bits")) for row in rows)
    far = max((row["logits"] for row in good), default=None)
    words = f"{len(good)} of {len(rows)} packages open, answer the same and pass their self-test"
    if good:
        words += f"; logits of {same} the same to the bit, {far:.1e} off at the most"
    return words + _failures(rows, lambda row: row not in good, "package")


def proved(rows: Sequence[Row]) -> str:
    """Of exports: how many families and folds hold every limit, and which don't."""
    words = []
    for kind, called in (("family", "families proved"), ("fold", "folds of tiny_vlm pass")):
        own = [row for row in rows if row["kind"] == kind]
        words.append(f"{sum(row.get('missed') == [] for row in own)} of {len(own)} {called}")
    return ", ".join(words) + _failures(rows, lambda row: row.get("missed") != [], "name")


def _failures(rows: Sequence[Row], failed: Any, name: str) -> str:
    bad = [row[name] for row in rows if failed(row)]
    return f"; not: {', '.join(bad)}" if bad else ""
