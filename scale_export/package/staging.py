"""Putting a package into its place as a whole, or not at all (``docs/package.md``).

1. Everything is written to a hidden sibling of the destination. A process that is killed leaves at worst that
   sibling, which the next run removes (``leftovers.py``).
2. ``manifest.json`` is written last, after every other file was hashed and synced. The whole is read again as whoever
   opens it will; then one rename, or one exchange with the old package, puts it into place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from scale_export.core.errors import UserError

from .exchange import Exchange, exchange, swap
from .leftovers import InTheMaking, remove, remove_abandoned
from .manifest import (
    FAILED_MANIFEST_NAME,
    MANIFEST_NAME,
    SEAL,
    Manifest,
    canonical_json,
    hash_file,
    open_package_files,
    scan_files,
)


def check_space(path: Path, needed: int) -> None:
    """Raise UserError where the disk on which ``path`` lies, or will, has less than ``needed`` bytes free."""
    free = shutil.disk_usage(_nearest_existing(path)).free
    if free < needed:
        room = f"it needs {needed:,} bytes and its disk has {free:,} free"
        raise UserError(f"no space for {path}: {room}; free some space or choose another --out")


def check_destination(out: Path, *, force: bool) -> None:
    """Refuse, writing nothing, a destination that cannot take a package.

    ``force`` replaces an empty directory, or a package that is whole and holds nothing else: a slip in ``--out`` must
    not cost other files. A failed export replaces a former one by the same rule, without ``force``.

    Raises:
        UserError: ``out`` exists and may not be replaced, ``<out>.failed`` is no failed export, or the parent cannot be
            written to.
    """
    try:
        _check_place(out, force=force)
        _check_failed_place(_failed(out.resolve()))
    except (OSError, RuntimeError) as error:  # a name too long, a closed directory, a loop of links
        raise UserError(f"{out} cannot be written ({error}): choose another --out") from None


def _check_place(out: Path, *, force: bool) -> None:
    if out.is_symlink():
        raise UserError(f"{out} is a link, and only directories can be replaced: choose another --out")
    out = out.resolve()
    if out.name.endswith(".failed"):
        raise UserError(
            f"{out} is refused, because names in .failed mark failed exports: choose another --out"
        )
    if not os.path.lexists(out):
        parent = _nearest_existing(out.parent)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(
                f"{out} cannot be written, because {parent} is not a directory that you can write to: "
                "choose another --out"
            )
    elif not out.is_dir():
        raise UserError(f"{out} exists and is not a directory: choose another --out")
    elif not force:
        raise UserError(f"{out} exists already: choose another --out, or give --force to replace it")
    elif any(out.iterdir()):
        _refuse_strangers(out, "--force replaces only what an export wrote")


def _failed(out: Path) -> Path:
    """Where a failed export of ``out`` is kept."""
    return out.with_name(f"{out.name}.failed")


def _check_failed_place(failed: Path) -> None:
    why = "a failed export would replace it"
    if not os.path.lexists(failed):
        return
    if failed.is_symlink() or not failed.is_dir() or os.path.lexists(failed / MANIFEST_NAME):
        raise UserError(f"{failed} is no failed export, and {why}: move it away or choose another --out")
    if any(failed.iterdir()):
        _refuse_strangers(failed, why)


def _refuse_strangers(directory: Path, why: str) -> None:
    """Refuse a directory in which anything is missing, changed, or not listed by the manifest of an export."""
    try:
        open_package_files(directory, failed=directory.name.endswith(".failed"), exact=True)
    except UserError as error:
        found = str(error).rpartition(":")[0]
        raise UserError(
            f"{directory} is not replaced ({found}), and {why}: move it away or choose another --out"
        ) from None


class StagedPackage:
    """A package in the making: ``directory``, beside ``out``, is moved into place as a whole, or removed.

    >>> with StagedPackage(out, force=False) as staged:
    ...     write_everything(staged.directory)
    ...     staged.commit(manifest)

    ``needed_bytes`` is what the package will take, if the caller knows; the disk must have as much free. With
    ``force`` an old package stays in its place until the new one is complete, and ``exchange`` swaps the two.

    Raises:
        UserError: as :func:`check_destination` and :func:`check_space`; on leaving, where writing failed
            because the disk is full or the place cannot be written to.
    """

    def __init__(
        self, out: Path, *, force: bool, needed_bytes: int | None = None, exchange: Exchange = exchange
    ) -> None:
        check_destination(out, force=force)
        self._out = out.resolve()
        self._force = force
        self._exchange = exchange
        self._needed = needed_bytes
        self._new_parents: list[Path] = []
        self._placed = False
        self._making = InTheMaking(self._out)
        self.directory = self._making.directory

    def __enter__(self) -> Self:
        try:
            if self._needed is not None:
                check_space(self._out, self._needed)
            for parent in reversed([p for p in self._out.parents if not os.path.lexists(p)]):
                parent.mkdir()
                self._new_parents.append(parent)
            self._making.__enter__()
            remove_abandoned(self._out, now=self.directory.stat().st_mtime)
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)

    def commit(self, manifest: Manifest) -> Path:
        """Hash and sync every staged file, write the manifest with them, and move the package to its place.

        Raises:
            ValueError: the manifest names a file that was not staged, or a name that no package may hold was.
            UserError: what was staged is gone, or is no more what was hashed.
        """
        self._seal(manifest, MANIFEST_NAME)
        open_package_files(self.directory, exact=True)
        check_destination(self._out, force=self._force)  # it may have appeared in the meantime
        return self._place(self._out, replace=self._force)

    def fail(self, manifest: Manifest) -> Path:
        """Move what was staged to ``<name>.failed``, in place of a former one; its manifest has a name of its own.

        Raises:
            UserError: what lies there is something else.
        """
        (self.directory / MANIFEST_NAME).unlink(missing_ok=True)
        self._seal(manifest, FAILED_MANIFEST_NAME)
        failed = _failed(self._out)
        _check_failed_place(failed)  # it may have appeared in the meantime
        return self._place(failed, replace=True)

    def _seal(self, manifest: Manifest, manifest_name: str) -> None:
        """Hash and sync every staged file, and write the manifest with them; open all to whom the umask says."""
        if not self.directory.is_dir():
            raise UserError(
                f"{self.directory} was removed while {self._out} was being written: is another export, or a cleaner, "
                "at work in that directory? Try again"
            )
        open_as_umask_says(self.directory)
        files = {}
        for name in sorted(name for name, _ in scan_files(self.directory)):
            files[name] = hash_file(self.directory / name)
            _sync(self.directory / name)
        complete = Manifest.model_validate({**manifest.model_dump(by_alias=True), "files": files})
        complete.check_references()
        table = complete.model_dump(mode="json", by_alias=True)
        seal = hashlib.sha256(canonical_json(table)).hexdigest()
        (self.directory / manifest_name).write_bytes(canonical_json({**table, SEAL: seal}))
        _sync(self.directory / manifest_name)
        for folder, _, _ in os.walk(self.directory):
            _sync(Path(folder))

    def _place(self, destination: Path, *, replace: bool) -> Path:
        if replace and os.path.lexists(destination):
            swap(self.directory, destination, self._exchange)
        else:
            self.directory.rename(destination)
        self._placed = True
        _sync(destination.parent)
        remove(self.directory)
        return destination

    def _leave(self, error: BaseException | None) -> None:
        try:
            reason = self._disk_problem(error)
        finally:
            self._clean_up()
        if reason:
            raise UserError(reason) from error

    def _clean_up(self) -> None:
        self._making.__exit__()
        if not self._placed:
            remove(self.directory)
            for parent in reversed(self._new_parents):
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def _disk_problem(self, error: BaseException | None) -> str | None:
        if isinstance(error, UserError):
            return None
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or any(_FULL_IN_WORDS.search(str(e)) for e in _chain(error)):
            written = sum(size for _, size in scan_files(self.directory)) if self.directory.is_dir() else 0
            needed = f" of the {self._needed:,} needed" if self._needed is not None else ""
            spent = f"no space left for {self._out} after {written:,} bytes{needed}"
            return f"{spent}: free some space or choose another --out"
        paths = (error.filename, error.filename2) if isinstance(error, OSError) else ()
        if any(isinstance(path, str | os.PathLike) and self._concerns(Path(path)) for path in paths):
            return f"{self._out} cannot be written ({error}): check its permissions and the disk"
        return None

    def _concerns(self, path: Path) -> bool:
        inside = path.is_relative_to(self.directory) or path.is_relative_to(self._out)
        return inside or self._out.is_relative_to(path)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota, or a limit of the process on a file's size."""
_FULL_IN_WORDS = re.compile(
    "|".join([*map(os.strerror, FULL), r"\d+ requested and \d+ written", "error occurred while writing"])
)
"""How writers in C++ and Rust say it, NumPy of a file that took a part, and coremltools."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def open_as_umask_says(directory: Path) -> None:
    """Give all that lies in a directory the modes that the umask gave the directory itself, as mkdir made it.

    Libraries write through temporary files, which are their owner's alone, and copies keep the modes of what they copy.
    """
    folders = directory.stat().st_mode & 0o777
    for place, names, files in os.walk(directory):
        for name in names:
            (Path(place) / name).chmod(folders)
        for name in files:
            (Path(place) / name).chmod(folders & 0o666)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
