"""The package as it is read (``docs/package.md``): its manifest, and every byte verified before anything else.

1. The manifest lists every other file with its size and SHA-256 and carries its own SHA-256: a changed byte
   anywhere is found. That finds damage, not forgery, since who can write the package can write its hashes.
2. The same contents give the same bytes: sorted keys, no times.
3. Nothing is handed out before all of the package was verified, and nothing that was touched since; nothing in it is
   a link or leads outside. In the
   hub's cache files are links to the cache's blobs: those are followed. What the hub and systems put beside a model's
   files is passed over; anything else that the manifest does not list is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict, ValidationError, field_validator

from scale_export.core.borders import first_problem
from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.inside import colliding, is_blob, is_inside_name
from scale_export.core.words import FloatType, FoldMode, Precision, Scope, Weighting

MANIFEST_NAME: Final = "manifest.json"
FAILED_MANIFEST_NAME: Final = "manifest.failed.json"
"""The manifest of an export that failed: everything is there, and nothing opens it but what looks for the fault."""
SCHEMA: Final = 2
"""1 had decoders of ONNX Runtime whose gate some runtimes ignore, and self-tests that did not tell."""
SEAL: Final = "manifest_sha256"
STRANGERS: Final = frozenset(
    {".gitattributes", "README.md", ".cache/huggingface", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"}
)
"""What the hub and its users put beside a model's files."""
STRANGERS_ANYWHERE: Final = frozenset({".DS_Store"})
"""What a system puts into every folder."""
MANIFESTS: Final = frozenset({MANIFEST_NAME, FAILED_MANIFEST_NAME})
MAX_MANIFEST_BYTES: Final = 4 << 20
_AGAIN: Final = "export it again"

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
    """What a runtime must know of the decoder to allocate its inputs and its cache.

    The dtypes are None in a checkpoint, whose runtime chooses them.
    """

    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    hidden_size: Count
    vocab_size: Count
    activation_dtype: FloatType | None
    kv_dtype: FloatType | None


class CalibrationFacts(_Record):
    """What a quantizer was calibrated on; see ``method.CalibrationOptions``."""

    questions: str
    limit: Count
    weighting: Weighting
    pictures: bool
    statistics_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PictureFacts(_Record):
    """An image processor's ``size`` where a target's limit lowered it: the base model's own, and the package's.

    Pictures keep their shape, so a host maps places in a prepared picture back by the picture's own width and height.
    """

    base_size: dict[str, Count]
    size: dict[str, Count]


class Manifest(_Record):
    """What ``manifest.json`` says.

    Attributes:
        libraries: version of each library that shaped the files, by distribution name.
        model_type: the base model's family, as in its configuration.
        generic: whether that family has no file of its own, see ``families/_generic.py``.
        block_size: weights per scale of int8 and int4; None for float weights.
        quantizer: the method that chose the integer weights; None for float weights.
        bits: matrices whose bits are not the precision's.
        calibration: what it was calibrated on; None where it was not.
        execution_providers: of the backend, in order of preference.
        graphs: the file or folder of each graph by its role: ``decoder`` (``decoder_1``, ``decoder_2``, … of a
            split one), and where there are such ones ``vision``, ``embedding``, ``decoder_folded`` (the second
            phase's), and what a backend's host needs beside them. Of a checkpoint, ``checkpoint``: its one
            weight file, or the index of several.
        coefficients: the side file that holds the scalars.
        pictures: how large the package makes pictures; None where it is as large as the base model's processor does.
        extras: the family's own facts, plain JSON.
        files: every file but the manifest, by its path inside the package with ``/`` between the parts;
            :meth:`StagedPackage.commit` fills it in.
    """

    schema_: Literal[2] = Field(default=SCHEMA, alias="schema")
    tool: Tool
    libraries: dict[str, str]
    name: str
    base_model: str
    model_type: str
    generic: bool = False
    target: str
    backend: str
    execution_providers: Annotated[tuple[str, ...], Strict(False)]
    scope: Scope
    fold: FoldMode
    precision: Precision
    block_size: Count | None
    quantizer: str | None = None
    calibration: CalibrationFacts | None = None
    bits: dict[str, Literal[4, 8]] = Field(default_factory=dict)
    context_length: Count
    graphs: dict[str, str]
    decoder: DecoderFacts
    coefficients: str
    image_token_id: Annotated[int, Field(ge=0)]
    pictures: PictureFacts | None = None
    extras: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _refuse_names_that_leave(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not is_inside_name(name) or name in MANIFESTS:
                raise ValueError(f"{name!r} is not the path of another file inside the package")
        if twins := colliding((*sorted(MANIFESTS), *files)):
            raise ValueError(f"{twins[0]!r} and {twins[1]!r} are one name on some systems")
        return files

    def check_references(self) -> None:
        """Raise ValueError where a graph or the coefficients name a file that ``files`` does not list."""
        if not {"decoder", "decoder_1", "checkpoint"} & self.graphs.keys():
            raise ValueError("graphs names no 'decoder' and no 'checkpoint'")
        for name in (*self.graphs.values(), self.coefficients):
            if not self.holds(name):
                raise ValueError(f"it names the file {name!r} and does not list it among its files")

    def holds(self, name: str) -> bool:
        """Whether a file of that name is listed, or files in a folder of that name."""
        return name in self.files or any(file.startswith(f"{name}/") for file in self.files)


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells that a file is the one that was hashed: a swapped or changed one has another inode or change time."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """From what the system says of an open file, or of a path."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFiles:
    """A package whose every byte was verified when it was opened.

    Runtimes open files by their path, later; ``check_unchanged`` around that holds them to what was verified.
    """

    directory: Path
    manifest: Manifest
    identities: Mapping[str, Identity]

    def path(self, name: str) -> Path:
        """Where the file or folder of that name lies.

        Raises:
            UserError: the package has none, or something changed since it was verified.
        """
        if not self.manifest.holds(name):
            near = did_you_mean(name, self.manifest.files)
            raise UserError(f"package {self.directory} has no file {name!r}{near}: {_AGAIN}")
        self.check_unchanged()
        return self.directory / name

    def check_unchanged(self) -> None:
        """Raise UserError where a file is no more the one that was verified."""
        for name, verified in self.identities.items():
            try:
                found = Identity.of((self.directory / name).stat())
            except OSError:
                found = None
            if found != verified:
                raise UserError(
                    f"{self.directory / name} was changed or replaced since the package was opened: open it again"
                )


def open_package_files(path: str | Path, *, failed: bool = False, exact: bool = False) -> PackageFiles:
    """Verify all of a package (rules 1 and 3), and hand out its files.

    ``failed`` takes a failed export too; ``exact`` takes only what an export wrote: no link, and no other file at all.

    Raises:
        UserError: whatever is wrong, naming the file.
    """
    directory = Path(path)
    if not directory.is_dir():
        why = "is not a directory" if os.path.lexists(directory) else "does not exist"
        raise UserError(
            f"package {directory} {why}: give the directory that an export wrote, or a hub id OWNER/NAME"
        )
    try:
        name = MANIFEST_NAME
        if failed and not os.path.lexists(directory / name):
            name = FAILED_MANIFEST_NAME
        manifest = read_manifest(directory / name, exact=exact)
        identities = _verify_files(directory, manifest, name, exact=exact)
    except OSError as error:
        raise UserError(f"package {directory} cannot be read ({error}): check permissions and disk") from None
    return PackageFiles(directory=directory, manifest=manifest, identities=identities)


def package_seal(files: PackageFiles) -> str:
    """What tells a package from every other: the SHA-256 that its manifest carries, of all else that it says."""
    files.check_unchanged()
    table = json.loads((files.directory / MANIFEST_NAME).read_bytes())
    seal: str = table[SEAL]
    return seal


def read_manifest(path: Path, *, exact: bool = False) -> Manifest:
    """A manifest whose own hash is right; the files that it lists were not looked at.

    Raises:
        UserError: whatever is wrong with it.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path.parent} has no {path.name}, so it is not a finished package: {_AGAIN}")
    size = _regular_size(path.parent, path.name, exact=exact)
    if size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path} has {size:,} bytes, and a manifest {MAX_MANIFEST_BYTES:,} at most: {_AGAIN}")
    try:
        manifest = Manifest.model_validate_json(_unseal(path.read_bytes()))
        manifest.check_references()
    except ValidationError as error:
        raise UserError(f"{path} is refused {first_problem(error)}: {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is refused ({error}): {_AGAIN}") from None
    return manifest


def _unseal(raw: bytes) -> bytes:
    """A manifest's JSON without its own hash, once that was found right (rule 3)."""
    table = json.loads(raw.decode(), object_pairs_hook=_without_duplicates)
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise ValueError(f"it does not follow schema {SCHEMA}, the one that this version of the tool reads")
    seal = table.pop(SEAL, None)
    content = canonical_json(table)
    if seal != hashlib.sha256(content).hexdigest() or raw != canonical_json({**table, SEAL: seal}):
        raise ValueError("it was changed after it was written")
    return content


def _without_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table


def canonical_json(table: Mapping[str, JsonValue]) -> bytes:
    """The one way to write a manifest's bytes."""
    return (json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _verify_files(
    directory: Path, manifest: Manifest, manifest_name: str, *, exact: bool
) -> dict[str, Identity]:
    """Hash every file, and say which file it was that had the hash."""

    def passed_over(name: str) -> bool:
        return not exact and not manifest.holds(name) and _is_known_stranger(name)

    found = scan_files(directory, passed_over, exact=exact)
    present = {name: size for name, size in found if name != manifest_name}
    for name in sorted(present.keys() - manifest.files.keys()):
        raise UserError(f"package {directory} holds {name!r}, which its manifest does not list: remove it")
    for name in sorted(manifest.files.keys() - present.keys()):
        raise UserError(f"package {directory} lacks {name!r}, which its manifest lists: {_AGAIN}")
    for name, entry in manifest.files.items():
        if present[name] != entry.size:
            raise UserError(f"{directory / name} has {present[name]} bytes, not {entry.size}: {_AGAIN}")
    largest_first = sorted(manifest.files.items(), key=lambda item: -item[1].size)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashed = {name: pool.submit(_verify_file, directory / name, entry) for name, entry in largest_first}
    return {name: hashed[name].result() for name in manifest.files}


def _verify_file(path: Path, entry: FileEntry) -> Identity:
    with path.open("rb") as file:
        identity = Identity.of(os.fstat(file.fileno()))
        if _hash(file) != entry:
            raise UserError(f"{path} is damaged: its SHA-256 differs from the manifest's; {_AGAIN}")
    return identity


def _is_known_stranger(name: str) -> bool:
    return name in STRANGERS or name.rpartition("/")[2] in STRANGERS_ANYWHERE


def scan_files(
    directory: Path, passed_over: Callable[[str], bool] = lambda name: False, *, exact: bool = True
) -> Iterator[tuple[str, int]]:
    """Name and size of every file below, but what is passed over; what is neither file nor directory is refused.

    Without ``exact``, links to the blobs of the hub's cache count as files.
    """
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if passed_over(name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    yield name, _regular_size(directory, name, exact=exact)


def _regular_size(directory: Path, name: str, *, exact: bool) -> int:
    """Bytes of a regular file, or without ``exact`` of the blob that a link of the hub's cache leads to.

    Raises:
        UserError: it is another link, a directory or a special file.
    """
    path = directory / name
    if path.is_symlink() and not (not exact and is_blob(Path(os.path.realpath(path)), directory)):
        raise UserError(f"{path} is a link, and packages hold none outside the hub's cache: {_AGAIN}")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file, and packages hold nothing else: {_AGAIN}")
    return status.st_size


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return _hash(file)


def _hash(file: BinaryIO) -> FileEntry:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return FileEntry(sha256=digest, size=os.fstat(file.fileno()).st_size)
