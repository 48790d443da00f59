"""What a command may end with: the exit codes, and the one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError"]

EXIT_OK = 0
EXIT_PARITY_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_OWN_FAULT = 70
"""As `EX_SOFTWARE` of sysexits.h: neither the package nor the words that were typed are to blame."""


class UserError(Exception):
    """A user's mistake: one sentence that says what was refused, why, and the way out.

    The command line prints it without a traceback and exits with ``EXIT_USER_ERROR``.
    """


class ContextFull(UserError):
    """More tokens than a package's context holds: a prompt too long, or the end of it in mid-answer."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
