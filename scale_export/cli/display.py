"""What a terminal shows: the parity table, figures and verdicts, and nothing of libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from scale_export.core.errors import EXIT_OK

console = Console(highlight=False)


def show_parity(parity: Mapping[str, Any]) -> None:
    """The parity report as a terminal table."""
    table = Table(title="parity against PyTorch ScAle")
    for heading in ("leg", "measured", "limit", "cases", "verdict"):
        table.add_column(heading)
    for name, leg in parity["legs"].items():
        if leg is None:
            table.add_row(name, "", "", "", "[dim]not checked[/]")
        else:
            measured, limit = _leg_figures(leg)
            table.add_row(name, measured, limit, str(leg["cases"]), verdict(leg["passed"]))
    console.print(table)
    agreement = parity["answer_agreement"]
    if agreement:
        say(
            f"Answers as PyTorch ScAle's on {agreement['cases']} parity prompts: {agreement['agreement']:.1%}"
        )
    attribution = parity["attribution"]
    if attribution:
        parts = ", ".join(f"{step} {figure(part['kl'])}" for step, part in attribution["parts"].items())
        say(f"KL from PyTorch ScAle along its answers {figure(attribution['whole']['kl'])}: {parts}")
    say(f"Executed by {parity['executed_by']}")
    for line in parity["not_checked"]:
        say(f"Not checked: {line}")


def _leg_figures(leg: Mapping[str, Any]) -> tuple[str, str]:
    """A leg's figures and limits in words."""
    if "kl" in leg:
        limits = leg["limits"]
        return (
            f"KL {leg['kl']:.2g}, top-1 {leg['top1_agreement']:.1%} of {leg['steps']} answer positions",
            f"KL {figure(limits['kl'])}, top-1 {figure(limits['top1_agreement'])}",
        )
    if "accuracy" in leg:
        shares = {who: kinds["spatial"] for who, kinds in leg["accuracy"].items()}
        words = ", ".join(f"{who} {share['value']:.1%}" for who, share in shares.items() if share)
        kept = leg["gain_retention"]
        shown = leg["equivalence"]["all"]
        within = f"; equally accurate within ±{shown['within']:.1%}" if shown else ""
        limits = leg["limits"]
        return (
            f"spatial: {words}; agreement {leg['agreement']:.1%}; gain kept {'—' if kept is None else f'{kept:.1%}'}"
            f"{within}",
            f"gain kept {figure(limits['gain_retention'])}, agreement {figure(limits['agreement_outside_near_ties'])}"
            f", margin {figure(limits['equivalence_margin'])}",
        )
    if "products" in leg:
        own = leg["products"]
        return (
            f"{figure(leg['value'])}, rounded products {figure(own['value'])}",
            f"{figure(leg['limit'])}, {figure(own['limit'])}",
        )
    return figure(leg["value"]), figure(leg["limit"])


def figure(value: float | None) -> str:
    """Three digits, or a dash where nothing was measured."""
    return "—" if value is None else f"{value:.3g}"


def verdict(passed: bool | None) -> str:
    """A leg's verdict in colour."""
    return {True: "[green]passed[/]", False: "[bold red]FAILED[/]", None: "[dim]not checked[/]"}[passed]


def say(sentence: str) -> None:
    """One line for people."""
    console.print(sentence, soft_wrap=True)


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
