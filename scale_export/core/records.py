"""Frozen value types that the stages hand to one another. No framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .words import Activation, MlpSite

Array = NDArray[Any]
"""An array of any dtype: numpy's arithmetic has no narrower type for it."""
Float32 = NDArray[np.float32]
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What a JSON file can hold."""


@dataclass(frozen=True, slots=True)
class NotChecked:
    """What a measurement says nothing of (a leg, a device, a file), and why."""

    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerInput:
    """One input of a vision tower: its shape for one picture or tile, and whether it holds int32 or float32."""

    shape: tuple[int, ...]
    integer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """One rotary embedding: frequency f turns by cos(position[axes[f]] · inv_freq[f]) · scale, and sin alike.

    Attributes:
        inv_freq: ``[head_dim / 2]``.
        axes: ``[head_dim / 2]``, which row of the position ids a frequency reads; all 0 where positions are
            token counts, and 0, 1, 2 for (time, row, column) in multimodal rotary embeddings.
    """

    inv_freq: tuple[float, ...]
    axes: tuple[int, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The shape of a language decoder: all that the portable decoder needs besides weights.

    Attributes:
        rotaries: the rotary embeddings, one as a rule.
        layer_rotaries: one entry per layer, an index into ``rotaries``.
        sliding_windows: one entry per layer, None where the layer sees everything.
        attention_scale: what scores are multiplied by; None is 1 / √head_dim.
        activation: of the gated MLP; ``gelu_tanh`` is GELU by its tanh approximation.
        qk_norm: whether each query and key head goes through an RMSNorm before it is turned.
        sandwich_norms: whether attention and MLP outputs go through norms of their own before they are added.
        norm_offset: what is added to a stored norm weight (1 in Gemma).
        embedding_scale: what the table's rows are multiplied by as they are looked up (√D in Gemma).
        grouped_attention: whether tokens of one group (a picture, a prompt) see one another whatever their order.
        deepstack_layers: how many of the first layers have visual features added to their output.
    """

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rotaries: tuple[Rotary, ...]
    layer_rotaries: tuple[int, ...]
    max_positions: int
    sliding_windows: tuple[int | None, ...]
    attention_scale: float | None = None
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    grouped_attention: bool = False
    deepstack_layers: int = 0

    @property
    def mlp_site(self) -> MlpSite:
        """Where the MLP's scalar acts: after the norm that follows the MLP, if there is one (``docs/scale.md``)."""
        return "post_norm" if self.sandwich_norms else "output"

    @property
    def position_axes(self) -> int:
        """How many rows a token's position has."""
        return 1 + max(max(rotary.axes, default=0) for rotary in self.rotaries)

    def linears(self) -> dict[str, tuple[int, int, bool]]:
        """Every matrix by portable name: (out_features, in_features, has bias)."""
        d, ff = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, int, bool]] = {}
        for i in range(self.num_layers):
            layer = f"layers.{i}"
            shapes[f"{layer}.q_proj"] = (q, d, self.qkv_bias)
            shapes[f"{layer}.k_proj"] = (kv, d, self.qkv_bias)
            shapes[f"{layer}.v_proj"] = (kv, d, self.qkv_bias)
            shapes[f"{layer}.o_proj"] = (d, q, self.o_bias)
            shapes[f"{layer}.gate_proj"] = (ff, d, self.mlp_bias)
            shapes[f"{layer}.up_proj"] = (ff, d, self.mlp_bias)
            shapes[f"{layer}.down_proj"] = (d, ff, self.mlp_bias)
        shapes["lm_head"] = (self.vocab_size, d, False)
        return shapes

    def norms(self) -> dict[str, int]:
        """Every RMSNorm by portable name: its width."""
        parts = {"input_norm": self.hidden_size, "mlp_norm": self.hidden_size}
        if self.qk_norm:
            parts |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        if self.sandwich_norms:
            parts |= {"attention_output_norm": self.hidden_size, "mlp_output_norm": self.hidden_size}
        layers = {
            f"layers.{i}.{part}": width for i in range(self.num_layers) for part, width in parts.items()
        }
        return {**layers, "norm": self.hidden_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFacts:
    """What a file beside the graphs tells the program that runs them; None what it does not tell.

    Attributes:
        scalars: ``[L, H]`` and ``[L]`` float32; None where it holds none.
    """

    file: str
    scalars: tuple[Float32, Float32] | None
    context_length: int | None = None
    image_token_id: int | None = None
    end_token_ids: tuple[int, ...] | None = None
