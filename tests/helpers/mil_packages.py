"""Small packages that coremltools converts from PyTorch, and the modules that they come from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.proto import Model_pb2
from torch import Tensor, nn
from torch.nn import functional as F

PREFILL = 6
"""Tokens that the function ``prefill`` takes."""
HIDDEN, HEADS, WIDTH, CONTEXT, LAYERS, VOCABULARY = 64, 2, 32, 32, 2, 50
STATES = ("k_cache", "v_cache")


class Decoder(nn.Module):
    """A two-layer decoder that writes keys and values into slices of its buffers.

    ``x [1, tokens, hidden]`` starts at ``position [1]``.
    """

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in STATES:
            self.register_buffer(name, torch.zeros(LAYERS, HEADS, CONTEXT, WIDTH))
        self.qkv = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN, bias=False) for _ in range(LAYERS))
        self.out = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(LAYERS))
        self.norm = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        tokens = x.shape[1]
        begin = position[0]
        rows = position + torch.arange(tokens, dtype=torch.int32)
        visible = torch.arange(CONTEXT, dtype=torch.int32)[None] <= rows[:, None]
        mask = torch.where(visible, 0.0, -30000.0)
        for layer in range(LAYERS):
            qkv = self.qkv[layer](self.norm[layer](x)).reshape(tokens, 3, HEADS, WIDTH).permute(1, 2, 0, 3)
            self.k_cache[layer, :, begin : begin + tokens] = qkv[1]
            self.v_cache[layer, :, begin : begin + tokens] = qkv[2]
            attended = F.scaled_dot_product_attention(
                qkv[0][None], self.k_cache[layer][None], self.v_cache[layer][None], mask
            )
            x = x + self.out[layer](F.silu(attended.transpose(1, 2).reshape(1, tokens, HIDDEN)))
        return self.head(x)  # type: ignore[no-any-return]


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval().requires_grad_(False)


def convert(
    module: nn.Module,
    inputs: list[Any],
    examples: tuple[Any, ...],
    states: Mapping[str, Any] | None = None,
    **how: Any,
) -> Any:
    """The converted model: an ML program in ``precision`` (float16 by default)."""
    traced = torch.jit.trace(module, examples, check_trace=False)
    precision = how.pop("precision", ct.precision.FLOAT16)
    return ct.convert(
        traced,
        inputs=inputs,
        outputs=[ct.TensorType(name="y")],
        states=[
            ct.StateType(ct.TensorType(shape=value.shape, dtype=np.float16), name=name)
            for name, value in (states or {}).items()
        ]
        or None,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=precision,
        skip_model_load=True,
        **how,
    )


def convert_decoder(tokens: int) -> Any:
    module = decoder()
    return convert(
        module,
        [
            ct.TensorType("x", (1, tokens, HIDDEN), dtype=np.float16),
            ct.TensorType("position", (1,), dtype=np.int32),
        ],
        (torch.zeros(1, tokens, HIDDEN), torch.zeros(1, dtype=torch.int32)),
        {name: getattr(module, name) for name in STATES},
    )


def save_functions(folder: Path, models: Mapping[str, Any], default: str) -> Path:
    """One package whose functions are the given models."""
    functions = ct.utils.MultiFunctionDescriptor()
    for name, model in models.items():
        path = folder / f"{name}.mlpackage"
        model.save(str(path))
        functions.add_function(str(path), src_function_name="main", target_function_name=name)
    functions.default_function_name = default
    ct.utils.save_multifunction(functions, str(folder / "functions.mlpackage"))
    return folder / "functions.mlpackage"


def edited(package: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a package with its model message changed."""
    copy = folder / "edited.mlpackage"
    shutil.copytree(package, copy)
    file = copy / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())
    return copy


def operations(model: Any, type: str) -> list[Any]:
    return [
        operation
        for function in model.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
        if operation.type == type
    ]
