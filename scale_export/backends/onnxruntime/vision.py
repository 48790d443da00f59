"""Emitting the vision tower with its projector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from scale_export.compat.onnxruntime import weight_quantizer
from scale_export.core.records import TowerInput
from scale_export.core.words import Precision
from scale_export.families._towers.tower import VisionTower, example_inputs

from .kernels import BITS
from .narrow import store_narrow
from .save import save_model
from .trace import forget_inner_shapes, trace, traced_once


class _Face(nn.Module):
    """A tower that computes in ``dtype`` and shows float32 outside."""

    def __init__(self, tower: VisionTower, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower = tower
        self.dtype = dtype

    def forward(self, names: list[str], values: list[Tensor]) -> list[Tensor]:
        inputs = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in zip(names, values, strict=True)
        }
        return [output.to(torch.float32) for output in self.tower(**inputs).values()]


def emit_vision(
    tower: VisionTower,
    inputs: Mapping[str, TowerInput],
    path: Path,
    *,
    patched: bool,
    precision: Precision,
) -> None:
    """Write ``vision.onnx``: ``inputs`` of any number of tiles or pictures → the tower's named outputs.

    Args:
        tower: float32; see ``Family.vision_module``.
        patched: whether the number of patches is as free.
        precision: of the weights; int8 is block-wise by ONNX Runtime's quantizer, in blocks of 32. Those that compute
            in float32 are stored in 16 bits where these hold them exactly.
    """
    dtype = torch.float16 if precision == "float16" else torch.float32
    model = traced_once(
        tower, (tuple(inputs.items()), patched, dtype), lambda: _trace(tower, inputs, patched, dtype)
    )
    if precision == "float32":
        store_narrow(model)
    save_model(model, path)
    if precision in BITS:
        _quantize(path, BITS[precision])


def _trace(
    tower: VisionTower, inputs: Mapping[str, TowerInput], patched: bool, dtype: torch.dtype
) -> ir.Model:
    example = example_inputs(inputs, 2)
    names = [*tower.computed(example), *tower.constants]
    free = ("pictures", "places") if patched else ("tiles",)
    # The caller's tower is the reference, so it stays float32.
    own = tower if dtype == torch.float32 else copy.deepcopy(tower).to(dtype)
    model = trace(
        _Face(own, dtype).eval(),
        (list(example), list(example.values())),
        input_names=list(example),
        output_names=names,
        dynamic_shapes=(
            [None] * len(example),
            [{i: Dim(name) for i, name in enumerate(free)}] * len(example),
        ),
    )
    for value in model.graph.inputs:
        value.shape = ir.Shape((*free, *inputs[str(value.name)].shape[len(free) - 1 :]))
    for value in model.graph.outputs:
        value.shape = _named(value.shape, (free[0], "rows"))
    forget_inner_shapes(model)
    return model


def _named(shape: ir.Shape | None, names: tuple[str, ...]) -> ir.Shape | None:
    """A shape whose lengths, where they are free, have these names in place of the tracer's."""
    if shape is None:
        return None
    return ir.Shape(length if isinstance(length, int) else names[min(i, 1)] for i, length in enumerate(shape))


def _quantize(path: Path, bits: int) -> None:
    upstream = weight_quantizer()
    config = upstream.DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, accuracy_level=0, bits=bits
    )
    quantizer = upstream.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantizer.process()
    path.with_name(f"{path.name}.data").unlink()
    onnx.save(
        quantizer.model.model,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=256,
    )
