"""The two formats of coefficient files, ``.safetensors`` and ``.pt``: bytes become fields without trust, and back.

A ``.safetensors`` file stores the scalars as tensors (``head_scale.0``, ``head_scale.1``, … where head counts
differ) and all else as one JSON object in its metadata, under ``scale_coefficients``. ``sha256`` in that
object is over everything, so that no damaged scalar is taken for a trained one; a file made by other tools
may leave it out. A ``.pt`` file is the same record as a flat dict; it holds nothing but tensors and plain
values, or is not opened. Nothing in a file may claim to be larger than the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.inside import check_regular
from scale_export.core.records import Array, Json

from .rules import SAVE_AGAIN, Fields

if TYPE_CHECKING:
    from torch import Tensor, dtype

MAX_BYTES = 64 * 2**20

_METADATA_KEY = "scale_coefficients"
_DTYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "I64": np.int64}
_SAFE_TORCH = (2, 10)  # older ones let a pickle past weights_only (CVE-2025-32434, CVE-2026-24747)


class Stored(TypedDict):
    """A tensor as safetensors gives it."""

    dtype: str
    shape: list[int]
    data: bytes


def read_capped(path: Path, max_bytes: int) -> bytes:
    """The file's bytes.

    Raises:
        UserError: it can't be read, or holds more than ``max_bytes``.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(
            f"cannot read coefficient file {path}: {error.strerror}; give an existing file"
        ) from error
    if len(content) > max_bytes:
        raise UserError(
            f"{path} is larger than {max_bytes} bytes, the most that coefficients may take: "
            "give a coefficient file, not a model"
        )
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: whole or not at all; raises UserError where the place can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_safetensors(path: Path, content: bytes) -> dict[str, object]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(sorted(deserialize(content)))  # type: ignore[no-untyped-call]
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        fields = json.loads(metadata.get(_METADATA_KEY, "{}"), object_pairs_hook=_unique)
        if not isinstance(fields, dict):
            raise ValueError(f"{_METADATA_KEY} in its metadata is not a record")
        arrays = {name: _from_safetensors(name, stored) for name, stored in tensors.items()}
        digest = fields.pop("sha256", None)
        if digest is not None and digest != _digest(fields, arrays):
            raise ValueError("its sha256 differs")
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again, or {SAVE_AGAIN}") from error
    return _unite(path, fields, arrays)


def _unite(path: Path, fields: Mapping[str, object], arrays: Mapping[str, Array]) -> dict[str, object]:
    tensors: dict[str, object] = dict(arrays)
    rows = sorted(name for name in arrays if re.fullmatch(r"head_scale\.\d+", name))
    if rows and set(rows) == {f"head_scale.{i}" for i in range(len(rows))}:
        tensors = {name: array for name, array in arrays.items() if name not in rows}
        tensors["head_scale"] = [arrays[f"head_scale.{i}"] for i in range(len(rows))]
    if twice := sorted(tensors.keys() & fields.keys()):
        raise UserError(f"{path} holds {twice[0]} both as a tensor and in its metadata; {SAVE_AGAIN}")
    return {**fields, **tensors}


def _digest(fields: Mapping[str, object], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(_canonical(fields).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _canonical(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, ensure_ascii=False)


def _from_safetensors(name: str, stored: Stored) -> Array:
    if stored["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is {stored['dtype']}, not float32")
    return np.frombuffer(stored["data"], _DTYPES[stored["dtype"]]).reshape(stored["shape"])


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field of its metadata stands there twice")
    return fields


def _safetensors_bytes(fields: Fields) -> bytes:
    from safetensors.numpy import save

    arrays = {"mlp_scale": fields["mlp_scale"]}
    if isinstance(fields["head_scale"], list):
        arrays |= {f"head_scale.{i}": row for i, row in enumerate(fields["head_scale"])}
    else:
        arrays["head_scale"] = fields["head_scale"]
    rest = {name: value for name, value in fields.items() if name not in ("mlp_scale", "head_scale")}
    record = _canonical({**rest, "sha256": _digest(rest, arrays)})
    content: bytes = save(arrays, metadata={_METADATA_KEY: record})
    return content


def tensors_of_pickle(path: Path, content: bytes) -> object:
    """What ``torch.save`` wrote, read with ``weights_only=True`` after its archive and its pickle were checked.

    Torch is given an archive made anew of what was checked: a file can hold two directories, and its own reader may
    follow the other one.

    Raises:
        UserError: torch is missing or older than 2.10, or the file is not safe or not whole.
    """
    torch = _safe_torch(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its archive is compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("its archive claims to be larger than the file")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("its archive holds a name twice")
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} differs")
            checked = io.BytesIO()
            with zipfile.ZipFile(checked, "w") as again:
                for entry in entries:
                    member = archive.read(entry)
                    if entry.filename.endswith(".pkl"):
                        _check_pickle(member)
                    again.writestr(entry.filename, member)
        checked.seek(0)
        return torch.load(checked, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything on bytes that somebody made up
        raise UserError(
            f"{path} is damaged or holds more than tensors and plain values, so it was not opened "
            f"({_reason(error)}); get it as .safetensors from its maker"
        ) from error


def _check_pickle(program: bytes) -> None:
    """Refuse a pickle that names more than tensors are made of: torch's own list of what is safe is longer.

    A ``bytearray`` of 4 GiB, for one, takes 20 bytes to ask for.
    """
    for code, argument, _ in pickletools.genops(program):
        if code.name == "STACK_GLOBAL":
            raise ValueError("its pickle names things in a way that torch.save does not")
        if code.name in ("GLOBAL", "INST") and not _OF_TENSORS.fullmatch(str(argument)):
            raise ValueError(f"it would run {str(argument).replace(' ', '.')}")


_OF_TENSORS = re.compile(
    r"torch \w+Storage|torch\.storage UntypedStorage|torch\._utils _rebuild_\w+|"
    r"torch\.serialization _get_layout|torch (float|bfloat|int|uint)\d+|torch bool|torch Size|_codecs encode|"
    r"collections OrderedDict"
)
"""Names in the pickles of state dicts: module and name, with a space between."""


def _reason(error: Exception) -> str:
    """What torch found, without its advice to open the file unsafely."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it would run {asked[1][:80]}"
    plain = isinstance(error, ValueError | zipfile.BadZipFile) and str(error).isprintable()
    return str(error)[:80] if plain else type(error).__name__


def _safe_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs torch, which is not installed: install scale-export[onnx], or give the "
            f"twin {path.with_suffix('.safetensors').name}"
        ) from error
    version: Any = torch.__version__
    if version < _SAFE_TORCH:
        raise UserError(
            f"torch {version} is too old to open {path} safely: install torch 2.10 or newer, or give the "
            f"twin {path.with_suffix('.safetensors').name}"
        )
    return torch


def _read_pt(path: Path, content: bytes) -> dict[object, object]:
    raw = tensors_of_pickle(path, content)
    import torch  # which is there now

    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a {type(raw).__name__}, not a record of fields; {SAVE_AGAIN}")
    taken = DenseTensors(path, len(content), (torch.float32, torch.int64))

    def array(name: object, value: object) -> object:
        return taken.plain(name, value).numpy() if isinstance(value, torch.Tensor) else value

    def arrays(name: object, value: object) -> object:
        if isinstance(value, list | tuple) and name == "head_scale":
            return [array(f"head_scale[{i}]", row) for i, row in enumerate(value)]
        return array(name, value)

    return {name: arrays(name, value) for name, value in raw.items()}


@dataclass(slots=True)
class DenseTensors:
    """Takes tensors out of what an unpickler made, where strides and shared storage may claim more than a file holds.

    Attributes:
        path: the file, for refusals.
        left: bytes that the tensors that are still to come may take together; the file's size at first.
        dtypes: what is taken.
    """

    path: Path
    left: int
    dtypes: tuple[dtype, ...]

    def plain(self, name: object, tensor: Tensor) -> Tensor:
        """The tensor without what makes it more than its values.

        Raises:
            UserError: it is not dense, of another dtype, or claims more than is left.
        """
        import torch

        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not dense or tensor.dtype not in self.dtypes:
            raise UserError(
                f"{self.path}: {name} is {tensor.dtype}; convert it to a dense float32 tensor and save again"
            )
        self.left -= tensor.numel() * tensor.itemsize
        if self.left < 0:
            raise UserError(f"{self.path}: {name} claims to be larger than the file; {SAVE_AGAIN}")
        return tensor.detach().resolve_neg()


def _pt_bytes(fields: Fields) -> bytes:
    import torch

    def tensors(value: object) -> object:
        if isinstance(value, list):
            return [tensors(item) for item in value]
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    buffer = io.BytesIO()
    torch.save({name: tensors(value) for name, value in fields.items()}, buffer)
    return buffer.getvalue()


READERS: Mapping[str, Callable[[Path, bytes], object]] = {".pt": _read_pt, ".safetensors": _read_safetensors}
"""Suffix → fields of a file's bytes, not yet held to the format's rules."""
WRITERS: Mapping[str, Callable[[Fields], bytes]] = {
    ".pt": _pt_bytes,
    ".safetensors": _safetensors_bytes,
}
