"""From a PyTorch module to an ``.aimodel`` asset: export, conversion, and what the asset really stores."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from scale_export.backends.collector import uncollected
from scale_export.device.coreai.apple import load_apple
from scale_export.model.blocks import BlockMatrix

ASSET_METADATA = "metadata.json"
CREATION_TIME = "creationDate"
UNPACK = "blockwise_shift_scale"
"""Core AI's operation from integer codes and block scales to a matrix."""


class PackedMatrix(nn.Module):
    """A block-quantized matrix as Core AI stores it: signed codes and scales, unpacked where it is used.

    ``forward() -> [out, in]`` in the scales' dtype.
    """

    codes: Tensor  # int8 [out, in], values of a signed integer of ``bits``
    scales: Tensor  # [out, blocks]

    def __init__(self, matrix: BlockMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        load_apple("coreai_torch._compression.custom_layers")  # registers the operator
        self.bits = matrix.bits
        signed = matrix.integers().astype("int16") - 2 ** (matrix.bits - 1)
        self.register_buffer("codes", torch.from_numpy(signed.astype("int8")))
        self.register_buffer("scales", torch.from_numpy(matrix.scales).to(dtype))

    def forward(self) -> Tensor:
        stored = getattr(torch, f"int{self.bits}")
        unpacked: Tensor = torch.ops.coreai.constexpr_blockwise_shift_scale(
            self.codes, self.scales, None, None, stored, None
        )
        return unpacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A written asset: Apple's handle on it, and how many values the matrices that its program uses have."""

    handle: Any
    matrix_values: int


def write_asset(
    module: nn.Module,
    path: Path,
    *,
    inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Any],
    outputs: Sequence[str],
    states: Sequence[str] = (),
) -> Asset:
    """Write ``path`` (a directory that ends in ``.aimodel``) with one function, ``main``.

    Args:
        inputs: an example by the name of each of ``module``'s arguments.
        dynamic: the same names, each with what ``torch.export`` takes for dynamic shapes.
        states: those of ``inputs`` that ``module`` writes to; the caller of the asset keeps them.
    """
    coreai_torch = load_apple("coreai_torch")
    with torch.no_grad(), uncollected():
        exported = torch.export.export(module, (), kwargs=dict(inputs), dynamic_shapes=dict(dynamic))
        program = exported.run_decompositions(coreai_torch.get_decomp_table())
    converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
    converter.add_exported_program(
        program,
        input_names=[name for name in inputs if name not in states],
        output_names=list(outputs),
        state_names=list(states),
    )
    with quiet():
        handle = converter.to_coreai().save_asset(path)
    _forget_time(path / ASSET_METADATA)
    return Asset(handle=handle, matrix_values=_matrix_values(program))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converter's progress bar off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _matrix_values(program: ExportedProgram) -> int:
    """How many values there are in the parameters and buffers of two and more dimensions that are used."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    held = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in kinds}
    used = [node.meta["val"] for node in program.graph.nodes if node.name in held and node.users]
    return sum(value.numel() for value in used if value.ndim > 1)


def _forget_time(path: Path) -> None:
    """Take the time of writing out of an asset: a package holds no times."""
    table = json.loads(path.read_text(encoding="utf-8"))
    table.pop(CREATION_TIME, None)
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_storage(asset: Asset, kind: str, *, values: int | None = None, packed: int = 0) -> None:
    """Hold an asset to the storage that was asked for.

    Args:
        kind: Core AI's name of the type: ``Float32``, ``Float16``, ``Int8``, ``Int4``.
        values: how many values it must hold at least; None for those of all matrices that are used.
        packed: how many matrices must be unpacked from integer codes.

    Raises:
        RuntimeError: the converter stored something else, which it does without a word.
    """
    summary = asset.handle.summary(include_statistics=True)
    stored = dict(summary.storage_types)
    unpacked = dict(summary.operation_distribution).get(UNPACK, 0)
    needed = asset.matrix_values if values is None else values
    if stored.get(kind, 0) < needed or unpacked != packed:
        raise RuntimeError(
            f"{Path(asset.handle.path).name} should hold {needed} values as {kind} and {packed} packed "
            f"matrices, but holds {stored} and {unpacked}"
        )
