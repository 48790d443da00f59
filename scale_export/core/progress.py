"""Telling a user what long work is doing, and keeping what each stage took of time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from .terminal import Terminal, printable


class WorkLog:
    """Stages with a live line each on standard error; ``seconds`` and ``peak_bytes`` keep what they took.

    Both stay out of packages, which are reproducible byte for byte; the command line writes them to a log.
    ``peak_bytes`` is the process's largest resident set up to the stage's end.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self._console = Terminal(stderr=True, quiet=quiet)
        self._progress: Progress | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage and show it while it runs."""
        started = time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
        )
        bar = Progress(
            *columns,
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with bar as progress:
            self._progress = progress
            self._task = progress.add_task(printable(name), total=None)
            try:
                yield
            finally:
                self._progress = None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.peak_bytes[name] = peak_memory()
        took = f"{self.seconds[name]:.1f} s, peak {self.peak_bytes[name] / 1e9:.2f} GB"
        self._console.print(Text.assemble("  ", ("✓", "green"), f" {printable(name)} ", (took, "dim")))

    def say(self, sentence: str) -> None:
        """One line for people, between stages."""
        self._console.print(Text(f"  • {printable(sentence)}"))

    def advance(self, what: str, done: int, total: int) -> None:
        """Move the current stage's bar: ``done`` of ``total`` of ``what``."""
        if self._progress is not None:
            self._progress.update(self._task, description=printable(what), completed=done, total=total)


def peak_memory() -> int:
    """Largest resident set of this process so far, bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":  # where ru_maxrss counts what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
