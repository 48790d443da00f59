"""Folders of packages in the making: whose each is, and which of them nobody works on any more.

A name says who made the folder: ``.<out>.partial-<system>-<process>-<random>``. Process numbers mean something within
one running system and one namespace of processes, which ``<system>`` stands for: there a maker that doesn't run left
its folder behind. Of other systems on the same volume (containers, hosts) only the folder's age tells, and a maker
renews it for as long as it works.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import threading
from pathlib import Path
from typing import Final, Self

HEARTBEAT_SECONDS: Final = 30.0
ABANDONED_SECONDS: Final = 900.0
"""How old a folder of another system is when nobody works on it any more: many heartbeats, and a volume's delays."""


class InTheMaking:
    """A folder beside ``out`` for a package in the making, whose age is renewed while this is entered."""

    def __init__(self, out: Path) -> None:
        self.directory = out.with_name(f"{_prefix(out)}{_system()}-{os.getpid()}-{secrets.token_hex(4)}")
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.directory.mkdir()
        _in_use.add(self.directory.name)
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        _in_use.discard(self.directory.name)

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.directory)


_in_use: set[str] = set()


def remove_abandoned(out: Path, now: float) -> None:
    """Remove what dead makers of ``out`` left; ``now`` is the time by the clock of the volume.

    Each folder is renamed first, so that a maker that lives after all finds nothing rather than a part.
    """
    pattern = re.compile(rf"{re.escape(_prefix(out))}([0-9a-f]{{8}})-(\d{{1,9}})-[0-9a-f]{{8}}(-old|-gone)?")
    for sibling in out.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and _is_abandoned(sibling, system=match[1], process=int(match[2]), now=now):
            gone = sibling
            if match[3] != "-gone":
                gone = sibling.with_name(f"{sibling.name.removesuffix('-old')}-gone")
                with contextlib.suppress(OSError):  # another one is removing it
                    sibling.rename(gone)
            remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory; what is there no more is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _is_abandoned(folder: Path, *, system: str, process: int, now: float) -> bool:
    if system == _system():
        return folder.name.removesuffix("-old") not in _in_use and not _is_alive(process)
    try:
        status = folder.lstat()
    except OSError:  # its maker is done with it
        return False
    return now - max(status.st_mtime, status.st_ctime) > ABANDONED_SECONDS


def _is_alive(process: int) -> bool:
    if process == os.getpid():  # and yet not in use: a former container's process of the same number
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _system() -> str:
    """Eight digits for the running system and its namespace of processes."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]
