"""Where another library reads a user's files: its errors become refusals of ours there, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

SHOWN = 160
"""Characters of another library's words that a sentence quotes."""


@contextmanager
def refusing(what: str, way_out: str) -> Iterator[None]:
    """Only another library's work belongs within: whatever it raises is a refusal of ``what``.

    What the system refuses (a full disk, permissions) and refusals of ours pass through.

    Args:
        what: what cannot be used, as a sentence begins.
        way_out: what to do, as it ends.

    Raises:
        UserError: the work within raised anything else.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{what} ({_said(error)}): {way_out}") from error


def first_problem(error: ValidationError) -> str:
    """Where a file departs from its schema first, and how: ``at 'key' (what is wrong)``."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "its beginning"
    return f"at {where!r} ({first['msg']})"


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust, such as tokenizers, gave up: its exception is no ``Exception``."""
    return type(error).__name__ == "PanicException"


def _said(error: BaseException) -> str:
    """The name and the first words of an error, on one line."""
    words = " ".join(str(error).split()).rstrip(".:")
    if len(words) > SHOWN:
        words = f"{words[:SHOWN].rstrip()} …"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
