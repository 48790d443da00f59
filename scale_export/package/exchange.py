"""Two paths that change places."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

Exchange = Callable[[Path, Path], bool]
"""Lets two paths change places at once; False, with both as they were, where it can't."""


def exchange(first: Path, second: Path) -> bool:
    """Linux's atomic exchange; False where the system or the file system has none.

    Raises:
        OSError: one of the two is absent, or the system refused for another reason.
    """
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def swap(new: Path, old: Path, exchange: Exchange) -> None:
    """Exchange two paths: at once where ``exchange`` does, else with a moment in which ``old`` is absent.

    Raises:
        OSError: the system refused, and both are where they were.
    """
    if exchange(new, old):
        return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)
