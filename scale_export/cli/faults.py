"""What ended a command that is no user's mistake in its words: the machine, or scale-export itself."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence

from scale_export.core.version import __version__

MACHINE: Mapping[int, str] = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in that quota",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EPIPE: "read it to its end",
}
"""What the system refuses for reasons of its own, and the way out."""


def machine_fault(error: OSError) -> str | None:
    """The sentence for what the system refused; None where the refusal shows a fault of ours."""
    way_out = MACHINE.get(error.errno or 0)
    if way_out is None:
        return None
    return f"{error.filename or 'the output'} cannot be used ({error.strerror}): {way_out}, and run the command again"


def own_fault(error: BaseException, words: Sequence[str]) -> str:
    """The sentence for a fault of ours; the trace goes to a file of its own, which the sentence names."""
    trace = "".join(traceback.format_exception(error))
    return (
        f"this is a fault of scale-export, not yours ({type(error).__name__}): report it with {_kept(trace, words)}, "
        f"which says where it happened"
    )


def _kept(trace: str, words: Sequence[str]) -> str:
    """Where the trace lies now; on standard error where no file can be written."""
    about = f"scale-export {__version__}, Python {platform.python_version()}, {platform.platform()}"
    text = f"{about}\nscale-export {' '.join(words)}\n\n{trace}"
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            prefix="scale-export-",
            suffix=".txt",
            delete=False,
        ) as file:
            file.write(text)
    except OSError:
        print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        return "the lines above"
    return file.name


def drop_output() -> None:
    """Let what is left for a standard output that takes no more go nowhere, so that the exit code stays as it is."""
    try:
        place = sys.stdout.fileno()
    except (OSError, ValueError):  # a stand-in without a file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, place)
    os.close(nowhere)
