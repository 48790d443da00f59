"""Ctrl-C at any moment of a command: it ends with one sentence and exit code 130, whatever a library makes of it.

Python's own handler raises ``KeyboardInterrupt`` wherever the main thread is. That may be inside a callback, whose
exceptions are printed and forgotten, or inside a library that makes another exception of it. So the interruption is
noted too, and one that was forgotten is raised again.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from scale_export.core.watch import interrupt_main_thread, is_interrupting

SOON: Final = 0.01
"""Seconds after which an interruption that was forgotten is raised again."""


class Interruption:
    """Whether the user asked for the command to end; where it is ``over``, nothing interrupts what is said of it."""

    def __init__(self) -> None:
        self.asked = False
        self.over = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take the signal: note it, and raise ``KeyboardInterrupt``."""
        if self.over:
            return
        self.asked = self.asked or not is_interrupting()
        signal.default_int_handler(number, frame)


@contextmanager
def noted() -> Iterator[Interruption]:
    """Within, interruptions are noted; a program's handlers are as they were afterwards.

    A program that handles them in its own way, or another thread than the main one, keeps its way. Where the process is
    the command's own, its handler stays, so that no interruption comes between the end of a command and the process's.
    """
    found = Interruption()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not _is_pythons(before):
        yield found
        return
    unraisable = sys.unraisablehook

    def again(about: sys.UnraisableHookArgs) -> None:
        if issubclass(about.exc_type, KeyboardInterrupt):
            threading.Timer(SOON, interrupt_main_thread).start()  # what is raised in here is forgotten, too
        else:
            unraisable(about)

    sys.unraisablehook = again
    try:
        signal.signal(signal.SIGINT, found.handle)
        yield found
    finally:
        sys.unraisablehook = unraisable
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _is_pythons(handler: object) -> bool:
    """Whether it is Python's own handler, or that of this program's first moments."""
    return handler is signal.default_int_handler or getattr(handler, "until_a_command_runs", False)


def leave_quietly() -> None:
    """Let nothing interrupt the end of the process, and let its exit code be the command's.

    An interruption that passed through code made of text, as ``dataclass`` makes, is remembered by Python for the exit
    code, even where it was caught; running such code once more forgets it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    exec("pass")
