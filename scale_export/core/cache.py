"""What scale-export keeps on a disk beside packages: where, how much, and how it is removed.

The cache holds what calibrations collected: ``calibration/<entry>/`` the statistics of a model, its scalars and a set
of questions, and ``written/<entry>.json`` what a model wrote to be calibrated on. Models that were fetched from the hub
lie in the hub's own cache, which is not ours.
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
WRITTEN: Final = "written"
_ENTRY: Final = re.compile(r"[0-9a-f]{32}")
_FILE: Final = re.compile(r"(layers\.\d+|output|run)\.(safetensors|json|\d+\.part)")
"""The files of a calibration's entry, and what a run that was killed left of one."""
_TEXT: Final = re.compile(r"([0-9a-f]{32})\.(json|\d+\.part)")
"""Likewise of what a model wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """What one calibration collected.

    Attributes:
        name: its place in the cache, such as ``calibration/0123…``.
        bytes: of its files together.
        used: when a file of it was last written, in seconds since 1970.
        files: those of ours; strangers beside them are not counted and never removed.
    """

    name: str
    directory: Path
    bytes: int
    used: float
    files: tuple[Path, ...]


def default_cache() -> Path:
    """``SCALE_EXPORT_CACHE``, else ``scale-export`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    own, home = os.environ.get("SCALE_EXPORT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(home) if home else Path.home() / ".cache") / "scale-export"


def cache_entries(place: StrPath | None = None) -> list[CacheEntry]:
    """The entries in a cache, by default our own; the newest first.

    Raises:
        UserError: a folder can't be read.
    """
    cache = default_cache() if place is None else Path(place)
    try:
        found = [*_calibrations(cache / CALIBRATION), *_texts(cache / WRITTEN)]
    except OSError as error:
        raise UserError(
            f"the cache {cache} cannot be read ({error.strerror}): check its permissions"
        ) from None
    return sorted(found, key=lambda entry: (-entry.used, entry.name))


def remove_entry(entry: CacheEntry) -> None:
    """Remove an entry's files, and its folder where nothing else lies in it.

    Raises:
        UserError: one can't be removed.
    """
    try:
        for file in entry.files:
            file.unlink(missing_ok=True)
        if entry.directory.is_dir() and not any(entry.directory.iterdir()):
            entry.directory.rmdir()
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be removed ({error.strerror}): check its permissions"
        ) from None


def _own(folder: Path) -> Iterator[Path]:
    """What lies in a folder and is no link; nothing where there is no folder."""
    if folder.is_dir() and not folder.is_symlink():
        yield from (path for path in sorted(folder.iterdir()) if not path.is_symlink())


def _calibrations(folder: Path) -> Iterator[CacheEntry]:
    for path in _own(folder):
        if _ENTRY.fullmatch(path.name) and path.is_dir():
            files = [file for file in _own(path) if _FILE.fullmatch(file.name) and file.is_file()]
            yield _entry(f"{CALIBRATION}/{path.name}", path, files)


def _texts(folder: Path) -> Iterator[CacheEntry]:
    for path in _own(folder):
        if (found := _TEXT.fullmatch(path.name)) and path.is_file():
            yield _entry(f"{WRITTEN}/{found[1]}", folder, [path])


def _entry(name: str, directory: Path, files: list[Path]) -> CacheEntry:
    states = [path.stat() for path in files]
    return CacheEntry(
        name=name,
        directory=directory,
        bytes=sum(state.st_size for state in states),
        used=max((state.st_mtime for state in states), default=directory.stat().st_mtime),
        files=tuple(files),
    )
