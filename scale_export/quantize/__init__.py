"""Quantization of a decoder's matrices: the methods (one file each) and weights seen through one of them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..blocks import Bits, BlockMatrix
from ..folding import Factor, FoldedDecoder, FoldedWeights, fold_blocks
from ..records import DecoderSpec, Float32
from ..weights import DecoderWeights


class Quantizer(Protocol):
    """What a method's file offers."""

    def quantize(self, weight: Float32, bits: Bits, block_size: int) -> BlockMatrix:
        """Quantize ``weight [out, in]`` in blocks along the input dimension."""
        ...


def load_quantizer(name: str) -> Quantizer:
    """The method of that name: the module of this package that is called so."""
    quantizer: Quantizer = importlib.import_module(f"{__name__}.{name}")
    return quantizer


@dataclass(frozen=True, kw_only=True)
class QuantizedWeights:
    """A decoder's weights quantized matrix by matrix as they are read, then folded by their block scales.

    The base weights are what is quantized, never the folded ones: integer codes don't depend on
    ``factors``. As ``DecoderWeights``, it answers with the dequantized values that a runtime computes with.
    """

    base: DecoderWeights
    quantizer: Quantizer
    bits: Bits
    block_size: int
    factors: Mapping[str, Factor] = field(default_factory=dict)

    @property
    def spec(self) -> DecoderSpec:
        return self.base.spec

    @functools.cached_property
    def block(self) -> Callable[[str], BlockMatrix]:
        """``block(name)``: the packed matrix of that name; the last one asked for is kept."""
        return functools.lru_cache(maxsize=1)(self._block)

    def _block(self, name: str) -> BlockMatrix:
        weight = self.base.embedding() if name == "embedding" else self.base.matrix(name)
        packed = self.quantizer.quantize(weight.numpy(), self.bits, self.block_size)
        factor = self.factors.get(name)
        return packed if factor is None else fold_blocks(name, packed, factor)

    def matrix(self, name: str) -> Tensor:
        return torch.from_numpy(self.block(name).dequantize())

    def bias(self, name: str) -> Tensor | None:
        bias, factor = self.base.bias(name), self.factors.get(name)
        return bias if factor is None or bias is None else bias * factor.bias

    def norm(self, name: str) -> Tensor:
        weight, factor = self.base.norm(name), self.factors.get(name)
        return weight if factor is None else weight * torch.from_numpy(factor.columns)

    def embedding(self) -> Tensor:
        return torch.from_numpy(self.block("embedding").dequantize())


def quantize(folded: FoldedDecoder, quantizer: Quantizer, *, bits: Bits, block_size: int) -> FoldedDecoder:
    """The same decoder with its base weights quantized and the factors moved into block scales."""

    def packed(weights: DecoderWeights) -> QuantizedWeights:
        base, factors = (
            (weights.base, weights.factors) if isinstance(weights, FoldedWeights) else (weights, {})
        )
        return QuantizedWeights(
            base=base, quantizer=quantizer, bits=bits, block_size=block_size, factors=factors
        )

    scaled = None if folded.scaled is None else packed(folded.scaled)
    return replace(folded, weights=packed(folded.weights), scaled=scaled)
