"""The package on disk (contract C4): staged beside its place, hashed, renamed into it, verified when opened.

1. Everything is written to a hidden sibling of the destination. A process that is killed leaves at worst that
   sibling, which the next run removes.
2. ``manifest.json`` is written last, after every other file was hashed and synced; then one rename, or one
   exchange with the old package, puts the whole into place.
3. The manifest lists every other file with its size and SHA-256 and carries its own SHA-256: a changed byte
   anywhere is found. That finds damage, not forgery, since who can write the package can write its hashes.
4. The same contents give the same bytes: sorted keys, no times.
5. Nothing is handed out before all of the package was verified, and nothing in it is a link or leads outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict, ValidationError, field_validator

from .errors import UserError, did_you_mean
from .records import FoldMode, Precision, Scope
from .targets import FloatType

MANIFEST_NAME: Final = "manifest.json"
SCHEMA: Final = 1
_SEAL: Final = "manifest_sha256"
_MAX_MANIFEST_BYTES: Final = 4 << 20
_NOT_IN_NAMES: Final = re.compile(r"[\x00-\x1f\x7f\\:]")
_AGAIN: Final = "export it again"
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

Count = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class FileEntry(_Record):
    """One file of a package: lower-case hexadecimal SHA-256, and size in bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Tool(_Record):
    """What wrote the package."""

    name: str
    version: str


class DecoderFacts(_Record):
    """What a runtime must know of the decoder to allocate its inputs and its cache."""

    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    hidden_size: Count
    vocab_size: Count
    activation_dtype: FloatType
    kv_dtype: FloatType


class Manifest(_Record):
    """What ``manifest.json`` says.

    Attributes:
        libraries: version of each library that shaped the files, by distribution name.
        model_type: the base model's family, as in its configuration.
        block_size: weights per scale of int8 and int4; None for float weights.
        execution_providers: of the backend, in order of preference.
        graphs: the file of each graph by its role: ``decoder``, and where there are such ones ``vision``,
            ``embedding`` and ``decoder_folded`` (the second phase's).
        coefficients: the side file that holds the scalars.
        extras: the family's own facts, plain JSON.
        files: every file but the manifest, by its path inside the package with ``/`` between the parts;
            :meth:`StagedPackage.commit` fills it in.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    tool: Tool
    libraries: dict[str, str]
    name: str
    base_model: str
    model_type: str
    target: str
    backend: str
    execution_providers: Annotated[tuple[str, ...], Strict(False)]
    scope: Scope
    fold: FoldMode
    precision: Precision
    block_size: Count | None
    context_length: Count
    graphs: dict[str, str]
    decoder: DecoderFacts
    coefficients: str
    image_token_id: Annotated[int, Field(ge=0)]
    extras: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _refuse_names_that_leave(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if _NOT_IN_NAMES.search(name) or {"", ".", ".."} & set(name.split("/")) or name == MANIFEST_NAME:
                raise ValueError(f"{name!r} is not the path of another file inside the package")
        return files

    def check_references(self) -> None:
        """Raise ValueError where a graph or the coefficients name a file that ``files`` does not list."""
        if "decoder" not in self.graphs:
            raise ValueError("graphs names no 'decoder'")
        for name in (*self.graphs.values(), self.coefficients):
            if name not in self.files:
                raise ValueError(f"it names the file {name!r} and does not list it among its files")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFiles:
    """A package whose every byte was verified when it was opened."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where the file of that name lies; raises UserError where the package has none."""
        if name not in self.manifest.files:
            near = did_you_mean(name, self.manifest.files)
            raise UserError(f"package {self.directory} has no file {name!r}{near}: {_AGAIN}")
        return self.directory / name


def open_package_files(path: str | Path) -> PackageFiles:
    """Verify all of a package (rules 3 and 5), and hand out its files.

    Raises:
        UserError: whatever is wrong, naming the file.
    """
    directory = Path(path)
    if not directory.is_dir():
        why = "is not a directory" if os.path.lexists(directory) else "does not exist"
        raise UserError(f"package {directory} {why}: give the directory that an export wrote")
    try:
        manifest = _read_manifest(directory / MANIFEST_NAME)
        _verify_files(directory, manifest)
    except OSError as error:
        raise UserError(f"package {directory} cannot be read ({error}): check permissions and disk") from None
    return PackageFiles(directory=directory, manifest=manifest)


def _read_manifest(path: Path) -> Manifest:
    if not os.path.lexists(path):
        raise UserError(f"{path.parent} has no {path.name}, so it is no finished package: {_AGAIN}")
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST_BYTES:
        limit = f"a regular file of at most {_MAX_MANIFEST_BYTES:,} bytes"
        raise UserError(f"{path} is refused, since it is not {limit}: {_AGAIN}")
    try:
        manifest = Manifest.model_validate_json(_unseal(path.read_bytes()))
        manifest.check_references()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is refused at {where!r} ({first['msg']}): {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is refused ({error}): {_AGAIN}") from None
    return manifest


def _unseal(raw: bytes) -> bytes:
    """A manifest's JSON without its own hash, once that was found right (rule 3)."""
    table = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise ValueError(f"it does not follow schema {SCHEMA}, the one that this version of the tool reads")
    seal = table.pop(_SEAL, None)
    content = _to_json(table)
    if seal != hashlib.sha256(content).hexdigest() or raw != _to_json({**table, _SEAL: seal}):
        raise ValueError("it was changed after it was written")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def _to_json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _verify_files(directory: Path, manifest: Manifest) -> None:
    present = {name: size for name, size in _scan(directory) if name != MANIFEST_NAME}
    for name in sorted(present.keys() - manifest.files.keys()):
        raise UserError(f"package {directory} holds {name!r}, which its manifest does not list: remove it")
    for name in sorted(manifest.files.keys() - present.keys()):
        raise UserError(f"package {directory} lacks {name!r}, which its manifest lists: {_AGAIN}")
    for name, entry in manifest.files.items():
        if present[name] != entry.size:
            raise UserError(f"{directory / name} has {present[name]} bytes, not {entry.size}: {_AGAIN}")
    for name, entry in manifest.files.items():
        if _hash(directory / name) != entry:
            raise UserError(f"{directory / name} is damaged, its SHA-256 is not the manifest's: {_AGAIN}")


def _scan(directory: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every file below; anything that is neither file nor directory is refused."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                name, status = prefix + entry.name, entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    yield name, status.st_size
                else:
                    raise UserError(f"{directory / name} is a link or a special file, refused here: {_AGAIN}")


def _hash(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, size=os.fstat(file.fileno()).st_size)


def check_space(path: Path, needed: int) -> None:
    """Raise UserError where the disk on which ``path`` lies, or will, has less than ``needed`` bytes free."""
    free = shutil.disk_usage(_nearest_existing(path)).free
    if free < needed:
        room = f"it needs {needed:,} bytes and its disk has {free:,} free"
        raise UserError(f"no space for {path}: {room}; free some space or choose another --out")


def check_destination(out: Path, *, force: bool) -> None:
    """Refuse, writing nothing, a destination that cannot take a package.

    ``force`` replaces a package or an empty directory only: a slip in ``--out`` must not cost other files.

    Raises:
        UserError: ``out`` exists and may not be replaced, or its parent cannot be written to.
    """
    try:
        _check_place(out, force=force)
    except (OSError, RuntimeError) as error:  # a name too long, a closed directory, a loop of links
        raise UserError(f"{out} cannot be written ({error}): choose another --out") from None


def _check_place(out: Path, *, force: bool) -> None:
    if out.is_symlink():
        raise UserError(f"{out} is a link, and only a directory is replaced: choose another --out")
    out = out.resolve()
    if out.name.endswith(".failed"):
        raise UserError(f"{out} is refused, since .failed marks failed exports: choose another --out")
    if not os.path.lexists(out):
        parent = _nearest_existing(out.parent)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"{out} is refused, {parent} being no writable directory: choose another --out")
    elif not out.is_dir():
        raise UserError(f"{out} exists and is not a directory: choose another --out")
    elif not force:
        raise UserError(f"{out} exists already: choose another --out, or give --force to replace it")
    elif any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise UserError(f"{out} is not a package, and --force replaces nothing else: choose another --out")


class StagedPackage:
    """A package in the making: ``directory``, beside ``out``, is moved into place as a whole, or removed.

    >>> with StagedPackage(out, force=False) as staged:
    ...     write_everything(staged.directory)
    ...     staged.commit(manifest)

    ``needed_bytes`` is what the package will take, if the caller knows; the disk must have as much free. With
    ``force`` an old package stays in its place until the new one is complete.

    Raises:
        UserError: as :func:`check_destination` and :func:`check_space`; on leaving, where writing failed
            because the disk is full or the place cannot be written to.
    """

    def __init__(self, out: Path, *, force: bool, needed_bytes: int | None = None) -> None:
        check_destination(out, force=force)
        self._out = out.resolve()
        self._force = force
        self._needed = needed_bytes
        self._new_parents: list[Path] = []
        self._placed = False
        self.directory = self._out.with_name(f"{_partial(self._out)}{os.getpid()}-{secrets.token_hex(4)}")

    def __enter__(self) -> Self:
        try:
            if self._needed is not None:
                check_space(self._out, self._needed)
            for parent in reversed([p for p in self._out.parents if not os.path.lexists(p)]):
                parent.mkdir()
                self._new_parents.append(parent)
            _remove_abandoned(self._out)
            self.directory.mkdir()
            _in_use.add(self.directory.name)
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
        """
        files = {}
        for name in sorted(name for name, _ in _scan(self.directory)):
            files[name] = _hash(self.directory / name)
            _sync(self.directory / name)
        complete = Manifest.model_validate({**manifest.model_dump(by_alias=True), "files": files})
        complete.check_references()
        table = complete.model_dump(mode="json", by_alias=True)
        seal = hashlib.sha256(_to_json(table)).hexdigest()
        (self.directory / MANIFEST_NAME).write_bytes(_to_json({**table, _SEAL: seal}))
        _sync(self.directory / MANIFEST_NAME)
        for folder, _, _ in os.walk(self.directory):
            _sync(Path(folder))
        check_destination(self._out, force=self._force)  # it may have appeared in the meantime
        return self._place(self._out, replace=self._force)

    def fail(self) -> Path:
        """Move what was staged, without a manifest, to ``<name>.failed``, in place of a former one."""
        (self.directory / MANIFEST_NAME).unlink(missing_ok=True)
        return self._place(self._out.with_name(f"{self._out.name}.failed"), replace=True)

    def _place(self, destination: Path, *, replace: bool) -> Path:
        if replace and os.path.lexists(destination):
            _swap(self.directory, destination)
        else:
            self.directory.rename(destination)
        self._placed = True
        _sync(destination.parent)
        _remove(self.directory)
        return destination

    def _leave(self, error: BaseException | None) -> None:
        try:
            reason = self._disk_problem(error)
        finally:
            self._clean_up()
        if reason:
            raise UserError(reason) from error

    def _clean_up(self) -> None:
        _in_use.discard(self.directory.name)
        if not self._placed:
            _remove(self.directory)
            for parent in reversed(self._new_parents):
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def _disk_problem(self, error: BaseException | None) -> str | None:
        if isinstance(error, UserError):
            return None
        number = error.errno if isinstance(error, OSError) else None
        # Writers in C++ and Rust report a full disk by their own exceptions' words.
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            written = sum(size for _, size in _scan(self.directory)) if self.directory.is_dir() else 0
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


_in_use: set[str] = set()


def _partial(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_abandoned(out: Path) -> None:
    pattern = re.compile(rf"{re.escape(_partial(out))}(\d{{1,9}})-[0-9a-f]{{8}}(-old)?")
    for sibling in out.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and sibling.name.removesuffix("-old") not in _in_use and not _is_alive(int(match[1])):
            _remove(sibling)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():  # and yet not in use: a former container's process of the same number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(new: Path, old: Path) -> None:
    """Exchange two paths: at once where the system can, else with a moment in which ``old`` is absent."""
    if _exchange(new, old):
        return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _exchange(first: Path, second: Path) -> bool:
    """Linux's atomic exchange; False where the system or the file system has none."""
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
