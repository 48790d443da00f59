"""What scale-export keeps on a disk beside packages: where, how much, and how it is removed.

The cache holds calibration statistics alone: ``calibration/<entry>/``, an entry for each model, set of scalars and set
of questions. Models that were fetched from the hub lie in the hub's own cache, which is not ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import UserError
from .options import StrPath

CALIBRATION: Final = "calibration"
_ENTRY: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"(layers\.\d+|output|run)\.(safetensors|json|\d+\.part)")
"""The files of an entry, and what a run that was killed left of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """The statistics of one calibration.

    Attributes:
        bytes: of its files together.
        used: when a file of it was last written, in seconds since 1970.
        files: those of ours; strangers beside them are not counted and never removed.
    """

    directory: Path
    bytes: int
    used: float
    files: tuple[Path, ...]


def default_cache() -> Path:
    """``SCALE_EXPORT_CACHE``, else ``scale-export`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    own, home = os.environ.get("SCALE_EXPORT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(home) if home else Path.home() / ".cache") / "scale-export"


def cache_entries(place: StrPath | None = None) -> list[CacheEntry]:
    """The entries in a cache, by the default its place; the newest first.

    Raises:
        UserError: the folder can't be read.
    """
    folder = (default_cache() if place is None else Path(place)) / CALIBRATION
    try:
        found = [_entry(path) for path in _folders(folder)]
    except OSError as error:
        raise UserError(
            f"the cache {folder} cannot be read ({error.strerror}): check its permissions"
        ) from None
    return sorted(found, key=lambda entry: (-entry.used, entry.directory.name))


def remove_entry(entry: CacheEntry) -> None:
    """Remove an entry's files, and its folder where nothing else lies in it.

    Raises:
        UserError: one can't be removed.
    """
    try:
        for file in entry.files:
            file.unlink(missing_ok=True)
        if not any(entry.directory.iterdir()):
            entry.directory.rmdir()
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be removed ({error.strerror}): check its permissions"
        ) from None


def _folders(folder: Path) -> Iterator[Path]:
    """What is named like an entry and is a folder, not a link to one."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _ENTRY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _entry(directory: Path) -> CacheEntry:
    files = sorted(
        path
        for path in directory.iterdir()
        if _FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    )
    states = [path.stat() for path in files]
    return CacheEntry(
        directory=directory,
        bytes=sum(state.st_size for state in states),
        used=max((state.st_mtime for state in states), default=directory.stat().st_mtime),
        files=tuple(files),
    )
