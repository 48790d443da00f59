"""Writing the folded checkpoint shard by shard: touched tensors row by row, every other byte as it is.

A touched tensor keeps its dtype, and so its length: headers, names, order and metadata are the base's bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.records import Float32
from scale_export.model.checkpoint import INDEX_FILE, Checkpoint, StoredTensor, read_header
from scale_export.model.files import copy_model_file, copy_model_folder
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import CheckpointWeights

from .storage import FOLDABLE, ITEM_BYTES, all_finite, narrow, widen

CHUNK = 2 << 20
"""Bytes that are folded at a time; their float32 and float64 copies set the peak memory."""

COPIED_SUFFIXES = (".json", ".jinja", ".model")
COPIED_TEXTS = ("merges.txt", "vocab.txt")
COPIED_NAMES = ("LICENSE", "NOTICE")
COPIED_FOLDERS = ("additional_chat_templates",)
OWN_FILES = ("manifest.json", "parity.json")
"""What a package of ours holds itself: left behind where the base is one."""

STRANGERS = (".", "adapter_")
"""How names begin that are no part of the model: an adapter beside a package would be applied to it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One stored tensor that folding changes.

    ``name`` is the stored one. ``fold`` takes some rows ``[n, in]`` of a matrix, or a whole vector, and
    returns them folded; float32.
    """

    name: str
    tensor: StoredTensor
    fold: Callable[[Float32], Float32]


def edits_of(folded: FoldedDecoder, weights: CheckpointWeights) -> list[Edit]:
    """Every stored tensor that ``folded`` changes, in the order of its factors; scalars of 1 change nothing."""
    edits = []
    linears = weights.spec.linears()
    for name, factor in folded.factors.items():
        if name in linears:
            columns = factor.columns
            if np.any(columns != 1):
                edits.append(_edit(weights, name, "weight", functools.partial(np.multiply, columns)))
            bias = folded.weights.bias(name)
            edits += [] if bias is None else _bias_edit(weights, name, bias.numpy())
        elif np.any(factor.columns != 1):
            offset = weights.spec.norm_offset
            edits.append(_edit(weights, name, "weight", functools.partial(fold_norm, factor.columns, offset)))
    return edits


def fold_norm(columns: Float32, offset: float, stored: Float32) -> Float32:
    """w' with offset + w' = s · (offset + w), worked out in float64 since the difference cancels digits."""
    folded: Float32 = (columns * (stored.astype(np.float64) + offset) - offset).astype(np.float32)
    return folded


def _edit(weights: CheckpointWeights, name: str, part: str, fold: Callable[[Float32], Float32]) -> Edit:
    module = f"{weights.module_name(name)}.{part}"
    return Edit(name=weights.checkpoint.resolve(module), tensor=weights.checkpoint.stored(module), fold=fold)


def _bias_edit(weights: CheckpointWeights, name: str, values: Float32) -> list[Edit]:
    """The edit that puts ``values`` in the place of a bias; none where they are the base's."""
    base = weights.bias(name)
    assert base is not None, "the folded weights have it"
    return [] if np.array_equal(base.numpy(), values) else [_edit(weights, name, "bias", lambda _: values)]


def refuse_unfoldable(checkpoint: Checkpoint, edits: Sequence[Edit]) -> None:
    """Refuse tensors that can't be folded where they lie.

    Raises:
        UserError: a dtype that products are not rounded to (float64), a tensor that is stored twice, or one whose
            bytes another tensor shares.
    """
    if len({edit.name for edit in edits}) < len(edits):
        raise UserError(
            f"{checkpoint.directory} stores one tensor for several layers, which have different scalars: "
            f"choose a target that gates, such as cpu"
        )
    touched = {edit.name: edit for edit in edits}
    for name, edit in touched.items():
        if edit.tensor.dtype not in FOLDABLE:
            raise UserError(
                f"{name} is stored as {edit.tensor.dtype}, and scalars are folded into {', '.join(FOLDABLE)} "
                f"only: save the base model in bfloat16, or choose a target that gates, such as cpu"
            )
    seen: dict[str, Path] = {}
    for file in checkpoint.weight_files():
        end, last = 0, ""
        for name, tensor in sorted(read_header(file).items(), key=lambda item: item[1].start):
            if name in touched and name in seen:
                raise UserError(
                    f"{name} is stored in {seen[name].name} and in {file.name}, and a loader may take either: "
                    f"save the base model again with save_pretrained"
                )
            if tensor.size and tensor.start < end and {name, last} & touched.keys():
                raise UserError(
                    f"{name} and {last} share bytes of {file.name}: save the base model again with save_pretrained"
                )
            seen[name] = file
            if tensor.start + tensor.size > end:
                end, last = tensor.start + tensor.size, name


def weight_bytes(checkpoint: Checkpoint) -> int:
    """What the weight files take on disk."""
    return sum(file.stat().st_size for file in checkpoint.weight_files())


def write_weights(checkpoint: Checkpoint, edits: Sequence[Edit], directory: Path) -> str:
    """Write every weight file into ``directory``; the name of the one, or of the index of several.

    Raises:
        UserError: a folded weight is too large for its dtype.
    """
    files = checkpoint.weight_files()
    for file in files:
        write_shard(file, directory / file.name, [edit for edit in edits if edit.tensor.file == file])
    return (
        files[0].name if len(files) == 1 and not (checkpoint.directory / INDEX_FILE).exists() else INDEX_FILE
    )


def write_shard(source: Path, destination: Path, edits: Iterable[Edit]) -> None:
    """Copy one safetensors file, folding some of its tensors on the way; raises as ``write_weights``."""
    with source.open("rb") as reader, destination.open("xb") as writer:
        for edit in sorted(edits, key=lambda edit: edit.tensor.start):
            _copy(reader, writer, edit.tensor.start - reader.tell())
            for raw in pieces(reader, edit.tensor):
                writer.write(_folded(raw, edit))
        _copy(reader, writer, source.stat().st_size - reader.tell())


def pieces(reader: BinaryIO, tensor: StoredTensor) -> Iterable[bytes]:
    """The tensor's bytes from where the reader stands: whole rows of a matrix, or a whole vector."""
    row = tensor.size // tensor.shape[0] if len(tensor.shape) > 1 else tensor.size
    step, left = row * max(1, CHUNK // row), tensor.size
    while left:
        raw = reader.read(min(step, left))
        if not raw:
            raise UserError(f"{tensor.file} ended while it was read: download that file again")
        left -= len(raw)
        yield raw


def _folded(raw: bytes, edit: Edit) -> bytes:
    tensor = edit.tensor
    values = widen(raw, tensor.dtype)
    if len(tensor.shape) > 1:
        values = values.reshape(-1, tensor.shape[-1])
    stored = narrow(edit.fold(values), tensor.dtype)
    if not all_finite(stored, tensor.dtype):
        raise UserError(
            f"a folded weight of {edit.name} is too large for {tensor.dtype}: save the base model in bfloat16, "
            f"or choose a target that gates, such as cpu"
        )
    assert len(stored) == len(raw) == values.size * ITEM_BYTES[tensor.dtype], (
        "a folded tensor keeps its place"
    )
    return stored


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> None:
    buffer = memoryview(bytearray(min(size, CHUNK)))
    while size:
        count = reader.readinto(buffer[: min(size, CHUNK)])  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{reader.name} ended while it was read: download that file again")
        writer.write(buffer[:count])
        size -= count


def copy_other_files(source: Path, directory: Path) -> None:
    """Copy what makes a model directory beside its weights: configs, tokenizer, processor, templates, licence.

    Raises:
        UserError: one of them is a link that leads elsewhere, or no regular file.
    """
    for file in sorted(source.iterdir()):
        if file.is_dir():
            if file.name in COPIED_FOLDERS:
                copy_model_folder(source, file.name, directory)
        elif _belongs(file):
            copy_model_file(source, file.name, directory)


def _belongs(file: Path) -> bool:
    if file.name in OWN_FILES or file.name.startswith(STRANGERS):
        return False
    if file.name in COPIED_TEXTS or file.suffix in COPIED_SUFFIXES:
        return True
    return file.name.upper().startswith(COPIED_NAMES)
