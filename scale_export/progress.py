"""Telling a user what long work is doing, and keeping how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)


class WorkLog:
    """Stages with a live line each on standard error, and their durations in ``seconds``.

    Times stay out of packages, which are reproducible byte for byte; the command line writes them to a log.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True, quiet=quiet)
        self._progress: Progress | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage and show it while it runs."""
        started = time.perf_counter()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        bar = Progress(
            *columns,
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with bar as progress:
            self._progress = progress
            self._task = progress.add_task(name, total=None)
            try:
                yield
            finally:
                self._progress = None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self._console.print(f"  [green]✓[/] {name} [dim]{self.seconds[name]:.1f} s[/]", highlight=False)

    def advance(self, what: str, done: int, total: int) -> None:
        """Move the current stage's bar: ``done`` of ``total`` of ``what``."""
        if self._progress is not None:
            self._progress.update(self._task, description=what, completed=done, total=total)
