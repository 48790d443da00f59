"""Folders as values."""

from __future__ import annotations

import os
from pathlib import Path


def tree(directory: Path) -> dict[str, bytes]:
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def place(path: Path, kind: str, elsewhere: Path) -> None:
    """Put something else where a file is: a ``link`` to it elsewhere, a ``fifo``, a ``directory`` or a ``loop``."""
    path.rename(elsewhere)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link" else path)
