"""What the benchmarks of quantization share: a Hugging Face model with other weights, asked in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scale_export.model.base import BaseModel
from scale_export.model.blocks import BlockMatrix
from scale_export.model.weights import CheckpointWeights
from scale_export.quantize import Method, QuantizedWeights
from scale_export.quantize.grid import blocked, reaching_scales, rounded
from scale_export.training.examples import Batch


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model said about every question: right or not, and the logits ``[N, V]`` that predict the answers."""

    right: NDArray[np.bool_]
    logits: NDArray[np.float32]


class PlainRounding(Method):
    """``rtn`` for any number of bits and any block size."""

    calibration = "unused"

    def quantize(self, weight: Any, bits: Any, block_size: int, moments: Any = None) -> BlockMatrix:
        blocks = blocked(weight, block_size)
        return rounded(blocks, reaching_scales(blocks, bits), bits, weight.shape[1])


def untie(model: nn.Module) -> None:
    """Give the output head weights of its own: a package stores it apart from the embedding table."""
    head: Any = model.get_submodule("lm_head")
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def answers(model: nn.Module, batch: Batch) -> Measured:
    """One batch of whole questions with their answers, in one forward."""
    logits, asked = model(**batch.inputs).logits, batch.targets >= 0
    right = ((logits.argmax(-1) == batch.targets) | ~asked).all(-1)
    return Measured(right=right.numpy(), logits=logits[asked].numpy())


def joined(parts: Sequence[Measured]) -> Measured:
    """Several batches as one."""
    right, logits = (np.concatenate([getattr(p, name) for p in parts]) for name in ("right", "logits"))
    return Measured(right=right, logits=logits)


def materialized(weights: QuantizedWeights) -> tuple[dict[str, Tensor], int]:
    """Every decoder tensor by portable name, and the bytes of codes and float32 scales."""
    tensors, size = {}, 0
    for name in (*weights.spec.linears(), "embedding"):
        block = weights.block(name)
        tensors[name] = torch.from_numpy(block.dequantize())
        size += -(-block.integers().size * block.bits // 8) + block.scales.nbytes
    return tensors | {name: weights.norm(name) for name in weights.spec.norms()}, size


@contextmanager
def replaced(base: BaseModel, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The Hugging Face model with other decoder weights, for as long as the context lasts."""
    parameters = dict(base.model.named_parameters())
    weights = base.weights
    assert isinstance(weights, CheckpointWeights)
    names = {"embedding": f"{weights.prefix}.embed_tokens", "lm_head": "lm_head"}
    kept = {}
    for name, value in tensors.items():
        parameter = parameters[f"{names.get(name) or weights.module_name(name)}.weight"]
        kept[name] = parameter.data
        assert parameter.shape == value.shape
        parameter.data = value
    try:
        yield
    finally:
        for name, value in kept.items():
            parameters[f"{names.get(name) or weights.module_name(name)}.weight"].data = value
