"""Names of files: those that come out of a file lead inside its folder and nowhere else, and all to regular files."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from unicodedata import normalize

from .errors import UserError

NOT_IN_NAMES: Final = re.compile(r"[\x00-\x1f\x7f\\:\ud800-\udfff]")
"""Characters that a name inside a folder never has: another system takes them for a path, a terminal obeys them, or
they are none."""
MAX_NAME: Final = 4096


def is_inside_name(name: object) -> bool:
    """Whether it is a relative path with ``/`` between its parts that leads nowhere but down."""
    if not isinstance(name, str) or len(name) > MAX_NAME:
        return False
    return not (NOT_IN_NAMES.search(name) or {"", ".", ".."} & set(name.split("/")))


def colliding(names: Iterable[str]) -> tuple[str, str] | None:
    """Two paths, or folders of them, that some file systems take for one; None where there are none.

    macOS and Windows ignore case, and macOS how a letter with its accent is put together.
    """
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        for path in ("/".join(parts[:count]) for count in range(1, len(parts) + 1)):
            one = normalize("NFC", normalize("NFC", path).casefold())
            if seen.setdefault(one, path) != path:
                return seen[one], path
    return None


def file_inside(folder: Path, name: object, named_in: str) -> Path:
    """The regular file that ``named_in`` (a file, in words) calls ``name``, inside ``folder``.

    Links are followed to what lies inside the folder, or among the blobs of the hub's cache that it is a snapshot of.

    Raises:
        UserError: the name leads out of the folder, by itself or through a link; nothing is there, or no regular file.
    """
    if not is_inside_name(name):
        raise UserError(f"{named_in} names the file {name!r}, which is none inside {folder}: {_AGAIN}")
    path = folder / str(name)
    try:
        real = path.resolve(strict=True)
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError):
        raise UserError(f"{path} is missing, so what {named_in} names is incomplete: {_AGAIN}") from None
    if not is_reachable(real, folder):
        raise UserError(f"{path}, which {named_in} names, is a link that leads out of {folder}: {_AGAIN}")
    if not regular:
        raise UserError(f"{path}, which {named_in} names, is not a regular file: {_AGAIN}")
    return path


_AGAIN: Final = "copy or export it again"


def check_regular(path: Path) -> None:
    """Refuse a pipe, a socket or a device, by itself or behind a link: reading one may never end.

    Raises:
        UserError: it is one. Whoever opens a path that is missing or a directory says so in its own words.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is a pipe, a socket or a device: give a regular file")


def is_reachable(real: Path, folder: Path) -> bool:
    """Whether a resolved path lies inside ``folder``, or among the blobs of the hub's cache that it lies in."""
    return real.is_relative_to(folder.resolve()) or is_blob(real, folder)


def is_blob(real: Path, folder: Path) -> bool:
    """Whether a resolved path is among the blobs of the hub's cache that ``folder`` lies in a snapshot of."""
    inside = folder.resolve()
    snapshots = [place for place in (inside, *inside.parents) if place.parent.name == "snapshots"]
    return any(real.is_relative_to(snapshot.parent.parent / "blobs") for snapshot in snapshots)
