"""Scaling channels on both sides of a product: what ``awq`` and ``smoothquant`` search factors for.

W x = (W·diag(s)) (x / s): columns are multiplied by s, and 1/s is absorbed, exactly but for float32 rounding, where
the inputs come from:

1. q, k and v (``input_norm``), gate and up (``mlp_norm``), lm_head (``norm``): into the norm's weight.
2. ``o_proj``: into the rows of ``v_proj`` and its bias. Attention mixes tokens, not channels, so a value channel's
   factor passes through; the query heads that share a key/value head share its factors. Head scalars multiply whole
   heads and commute with them.
3. ``down_proj``: into the rows of ``up_proj`` and its bias, which the gated MLP is linear in.

Every matrix of the portable decoder is covered; the embedding has no input channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scale_export.core.records import DecoderSpec, Float32
from scale_export.model.weights import DecoderWeights

from .method import Moments, Statistics

SPREAD = 1e3
"""The largest ratio of two channels' factors, so that a channel which calibration never saw stays finite."""

NORM_INPUTS = {"input_norm": "q_proj", "mlp_norm": "gate_proj"}
"""A layer's norm → a matrix of the group that it feeds."""
ROW_INPUTS = {"v_proj": "o_proj", "up_proj": "down_proj"}
"""A matrix whose outputs are another one's inputs."""


def group_of(name: str) -> tuple[str, ...]:
    """The matrices that share the inputs of this one, itself among them."""
    prefix, _, part = name.rpartition(".")
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        if part in parts:
            return tuple(f"{prefix}.{p}" for p in parts)
    return (name,)


def per_value_channel(
    name: str, spec: DecoderSpec, values: NDArray[np.float64], *, reduce: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Values of input channels ``[in]``; of ``o_proj`` reduced over the query heads that share a value channel."""
    if not name.endswith(".o_proj"):
        return values
    heads = values.reshape(spec.num_kv_heads, -1, spec.head_dim)
    return np.broadcast_to(reduce(heads, axis=1, keepdims=True), heads.shape).reshape(-1)


def centred(factors: NDArray[np.float64]) -> Float32:
    """The factors around 1: their smallest and their largest are each other's inverse."""
    middle = float(np.sqrt(factors.min() * factors.max()))
    return np.asarray(factors / middle, np.float32)


@dataclass(frozen=True, kw_only=True)
class EqualizedWeights:
    """Weights of the same function with channels scaled (rules 1 to 3).

    Attributes:
        search: the factors ``[in]`` of the group that begins with that matrix; asked once each, when they are needed.
    """

    base: DecoderWeights
    search: Callable[[str], Float32]

    @property
    def spec(self) -> DecoderSpec:
        return self.base.spec

    @functools.cached_property
    def _found(self) -> Callable[[str], Float32]:
        return functools.cache(self.search)

    def columns(self, name: str) -> Float32 | None:
        """What the input columns of a matrix are multiplied by, ``[in]``; None for the embedding."""
        return self._found(group_of(name)[0]) if name in self.spec.linears() else None

    def rows(self, name: str) -> Tensor | None:
        """What the rows of ``v_proj`` or ``up_proj`` are divided by (rules 2 and 3)."""
        prefix, _, part = name.rpartition(".")
        if part not in ROW_INPUTS:
            return None
        columns = self._found(f"{prefix}.{ROW_INPUTS[part]}")
        if part == "v_proj":
            shape = (self.spec.num_kv_heads, -1, self.spec.head_dim)
            columns = columns.reshape(shape)[:, 0].reshape(-1)
        return torch.from_numpy(columns)

    def matrix(self, name: str) -> Tensor:
        weight, columns, rows = self.base.matrix(name), self.columns(name), self.rows(name)
        assert columns is not None, "a matrix has input columns"
        weight = weight * torch.from_numpy(columns)
        return weight if rows is None else weight / rows[:, None]

    def bias(self, name: str) -> Tensor | None:
        bias, rows = self.base.bias(name), self.rows(name)
        return bias if bias is None or rows is None else bias / rows

    def norm(self, name: str) -> Tensor:
        weight, (prefix, _, part) = self.base.norm(name), name.rpartition(".")
        fed = (
            "lm_head" if name == "norm" else f"{prefix}.{NORM_INPUTS[part]}" if part in NORM_INPUTS else None
        )
        return weight if fed is None else weight / torch.from_numpy(self._found(group_of(fed)[0]))

    def embedding(self) -> Tensor:
        return self.base.embedding()


@dataclass(frozen=True, slots=True)
class EqualizedStatistics:
    """Statistics of inputs that were divided by ``columns(name)``."""

    base: Statistics
    columns: Callable[[str], Float32 | None]

    def moments(self, name: str) -> Moments | None:
        moments, columns = self.base.moments(name), self.columns(name)
        return moments if moments is None or columns is None else moments.divided(columns)

    def peaks(self, name: str) -> Float32 | None:
        peaks, columns = self.base.peaks(name), self.columns(name)
        return peaks if peaks is None or columns is None else peaks / columns
