"""Folding ScAle scalars into weights (``docs/scale.md``).

Rules:
1. Head h scales columns h·head_dim … (h+1)·head_dim of ``o_proj``; its bias stays.
2. The MLP scalar scales every element of ``down_proj``, and its bias; where a norm follows the MLP, that norm's
   weight (the family's offset included) in their place.
3. Arithmetic is float32; a cast to a storage type comes after.
4. Block-quantized weights keep their integer codes: only block scales are multiplied, and a block that
   straddles two heads is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.records import DecoderSpec, Float32
from scale_export.core.words import FoldMode

from .blocks import BlockMatrix
from .weights import DecoderWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """What folding multiplies one matrix by: each input column by ``columns [in]``, its bias by ``bias``.

    Of a norm, ``columns [width]`` multiply its weight.
    """

    columns: Float32
    bias: float

    def on_blocks(self, name: str, block_size: int) -> Float32:
        """The factor of each block of input columns, ``[blocks]``; refuses blocks with two factors (rule 4)."""
        padded = np.pad(self.columns, (0, -len(self.columns) % block_size), mode="edge")
        blocks = padded.reshape(-1, block_size)
        if np.any(blocks != blocks[:, :1]):
            raise UserError(
                f"cannot fold into {name}: a quantization block of {block_size} columns straddles heads with "
                f"different scalars; use a block size that divides head_dim, or --fold gate"
            )
        return np.ascontiguousarray(blocks[:, 0])


def fold_factors(spec: DecoderSpec, coefficients: Coefficients) -> dict[str, Factor]:
    """The factor of every matrix and norm that the scalars touch, by portable name (rules 1 and 2)."""
    factors: dict[str, Factor] = {}
    for row, layer in enumerate(coefficients.layer_indices):
        heads = np.repeat(coefficients.head_scale[row].astype(np.float32), spec.head_dim)
        factors[f"layers.{layer}.o_proj"] = Factor(columns=heads, bias=1.0)
        mlp = float(coefficients.mlp_scale[row])
        after_norm = spec.mlp_site == "post_norm"
        width = spec.hidden_size if after_norm else spec.intermediate_size
        site = "mlp_output_norm" if after_norm else "down_proj"
        factors[f"layers.{layer}.{site}"] = Factor(columns=np.full(width, mlp, np.float32), bias=mlp)
    return factors


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedWeights:
    """A decoder's weights with factors multiplied in as they are read; the base is untouched."""

    base: DecoderWeights
    factors: Mapping[str, Factor]

    @property
    def spec(self) -> DecoderSpec:
        return self.base.spec

    def matrix(self, name: str) -> Tensor:
        weight, factor = self.base.matrix(name), self.factors.get(name)
        return weight if factor is None else weight * torch.from_numpy(factor.columns)

    def bias(self, name: str) -> Tensor | None:
        bias, factor = self.base.bias(name), self.factors.get(name)
        return bias if factor is None or bias is None else bias * factor.bias

    def norm(self, name: str) -> Tensor:
        weight, factor = self.base.norm(name), self.factors.get(name)
        return weight if factor is None else weight * torch.from_numpy(factor.columns)

    def embedding(self) -> Tensor:
        return self.base.embedding()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedDecoder:
    """A decoder with its scalars placed by one of the fold modes; emitters and the reference both read this.

    Attributes:
        weights: of every forward, or of the prefix in two phases.
        scaled: of the last prompt token and every generated one in two phases, else None.
        gate: whether the scalars stay outside, as a gate over ``coefficients``.
    """

    weights: DecoderWeights
    scaled: DecoderWeights | None
    coefficients: Coefficients
    gate: bool
    factors: Mapping[str, Factor]
    """What was multiplied into ``weights`` (or ``scaled``); empty for a gate."""

    @property
    def folded_matrices(self) -> list[str]:
        """The names of the matrices that folding touches, sorted."""
        return sorted(self.factors.keys() & self.weights.spec.linears().keys())

    def dense(self) -> tuple[Float32, Float32]:
        """The scalars of every layer: ``[L, H]`` and ``[L]``."""
        spec = self.weights.spec
        return self.coefficients.dense(spec.num_layers, spec.num_heads)


def fold(weights: DecoderWeights, coefficients: Coefficients, mode: FoldMode) -> FoldedDecoder:
    """Place the scalars; the base weights are untouched. Whether ``mode`` is exact is the plan's to decide."""
    if mode == "gate":
        return FoldedDecoder(weights=weights, scaled=None, coefficients=coefficients, gate=True, factors={})
    factors = fold_factors(weights.spec, coefficients)
    folded = FoldedWeights(base=weights, factors=factors)
    if mode == "weights":
        return FoldedDecoder(
            weights=folded, scaled=None, coefficients=coefficients, gate=False, factors=factors
        )
    return FoldedDecoder(
        weights=weights, scaled=folded, coefficients=coefficients, gate=False, factors=factors
    )


def fold_blocks(name: str, matrix: BlockMatrix, factor: Factor) -> BlockMatrix:
    """Fold into a quantized matrix: its codes stay byte-identical (rule 4)."""
    return matrix.with_block_factors(factor.on_blocks(name, matrix.block_size))
