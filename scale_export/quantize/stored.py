"""The cache of quantization: entries are named by all that decides them, and each file has its hash beside it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.records import Array
from scale_export.device.generation import Inputs
from scale_export.model.base import BaseModel

if TYPE_CHECKING:
    from hashlib import _Hash

RECORD_SCHEMA: Final = 2
"""Of the record beside each file; a file with a record of another is collected again."""


def model_facts(base: BaseModel, coefficients: Coefficients, schema: int, *more: str | int) -> _Hash:
    """A hash, begun with a model's weights and configuration, the scalars, and whatever else is to be told apart."""
    attn, mlp = coefficients.dense(base.spec.num_layers, base.spec.num_heads)
    stored = base.checkpoint
    facts = [
        schema,
        stored.config_sha256(),
        [[name, stored.sha256(name)] for name in stored.stored_names()],
        [coefficients.scope, coefficients.mlp_site, *more],
    ]
    return hashlib.sha256(json.dumps(facts).encode() + attn.tobytes() + mlp.tobytes())


def add_inputs(digest: _Hash, inputs: Inputs) -> None:
    """Go on with a processor's inputs."""
    for name, value in sorted(inputs.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())


def make_entry(entry: Path) -> None:
    """Make the folder of a cache entry; raises UserError where it can't be made."""
    try:
        entry.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(entry, error) from None


def write_whole(tensors: dict[str, Array], file: Path) -> None:
    """A file that is whole or not there, with the mode that the umask says, and the record of its hash (rule 4).

    Raises:
        UserError: it can't be written.
    """
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(tensors, part)
        part.chmod(mode)  # safetensors writes through a temporary file, which is its owner's alone
        record = json.dumps({"schema": RECORD_SCHEMA, "sha256": _sha256(part)})
        part.replace(file)
        part.write_text(record + "\n", encoding="utf-8")
        part.replace(file.with_suffix(".json"))
    except OSError as error:
        raise _unwritable(file, error) from None


def write_text_whole(text: str, file: Path) -> None:
    """The same of a text; raises UserError likewise."""
    make_entry(file.parent)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(place: Path, error: OSError) -> UserError:
    return UserError(f"{place} cannot be written ({error.strerror}): give another folder with --cache")


def recorded_sha256(file: Path) -> str | None:
    """The SHA-256 of a cache's file in hex; None where it is not there, or not what its record says (rule 4)."""
    beside = file.with_suffix(".json")
    if not file.is_file() or not beside.is_file():
        return None
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        found = _sha256(file)
    except (OSError, ValueError, RecursionError):
        return None
    return found if record == {"schema": RECORD_SCHEMA, "sha256": found} else None


def read_recorded(file: Path, sha256: str) -> dict[str, Array]:
    """The arrays of a cache's file, read once: of the bytes that have the hash.

    Raises:
        UserError: it is not there any more, changed since it was checked, or holds no arrays.
    """
    try:
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{file} was changed while it was in use: export again, alone in its --cache")
        return load(content)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} is damaged, and its record is of the damaged file: remove it") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
