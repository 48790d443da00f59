"""Weights seen through a quantization method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from scale_export.core.records import DecoderSpec
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.model.folding import Factor, fold_blocks
from scale_export.model.weights import DecoderWeights

from .method import Method, NoStatistics, Statistics


@dataclass(frozen=True, kw_only=True)
class QuantizedWeights:
    """A decoder's weights quantized matrix by matrix as they are read, then folded by their block scales.

    The base weights are what is quantized, never the folded ones: integer codes don't depend on
    ``factors``. As ``DecoderWeights``, it answers with the dequantized values that a runtime computes with.

    Attributes:
        base: as the method prepared them, in ``prepared``.
        bits: of every matrix but those in ``other_bits``.
        statistics: of the inputs of these matrices.
        held: whether each packed matrix is kept once it was made; else the last one asked for is.
    """

    base: DecoderWeights
    quantizer: Method
    bits: Bits
    block_size: int
    factors: Mapping[str, Factor] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=NoStatistics)
    other_bits: Mapping[str, Bits] = field(default_factory=dict)
    held: bool = False

    @classmethod
    def prepared(
        cls,
        base: DecoderWeights,
        quantizer: Method,
        *,
        bits: Bits,
        block_size: int,
        statistics: Statistics | None = None,
        other_bits: Mapping[str, Bits] | None = None,
        held: bool = False,
    ) -> Self:
        """Unfolded weights, made ready by the method itself."""
        ready, seen = quantizer.prepare(base, statistics or NoStatistics(), bits, block_size)
        return cls(
            base=ready,
            quantizer=quantizer,
            bits=bits,
            block_size=block_size,
            statistics=seen,
            other_bits=other_bits or {},
            held=held,
        )

    def bits_of(self, name: str) -> Bits:
        """Of a matrix, or of the embedding."""
        return self.other_bits.get(name, self.bits)

    @property
    def spec(self) -> DecoderSpec:
        return self.base.spec

    @functools.cached_property
    def block(self) -> Callable[[str], BlockMatrix]:
        """``block(name)``: the packed matrix of that name."""
        return functools.lru_cache(maxsize=None if self.held else 1)(self.pack)

    @functools.cached_property
    def table_is_head(self) -> bool:
        """Whether the embedding table is the output head, at the same bits: then it has the head's codes.

        Block scales differ by the family's ``embedding_scale``. A method that scales the head's columns parts them.
        """
        if self.bits_of("embedding") != self.bits_of("lm_head"):
            return False
        head, table = self.base.matrix("lm_head"), self.base.embedding()
        scale = self.spec.embedding_scale
        return torch.equal(head if scale == 1 else head * scale, table)

    def pack(self, name: str) -> BlockMatrix:
        """What ``block`` keeps, worked out anew: quantized first, then folded."""
        if name == "embedding" and self.table_is_head:
            head = self.block("lm_head")
            return replace(head, scales=head.scales * np.float32(self.spec.embedding_scale))
        weight = self.base.embedding() if name == "embedding" else self.base.matrix(name)
        moments = self.statistics.moments(name)
        packed = self.quantizer.quantize(weight.numpy(), self.bits_of(name), self.block_size, moments)
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
