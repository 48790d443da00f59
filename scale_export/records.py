"""Frozen value types that the stages hand to one another. No framework is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Scope = Literal["last", "all"]
MlpSite = Literal["output", "post_norm"]
FoldMode = Literal["weights", "gate", "two-phase"]
Precision = Literal["float32", "float16", "int8", "int4", "stored"]
"""What weights are written in; ``stored`` keeps the dtypes of the base checkpoint."""
Array = NDArray[Any]
Float32 = NDArray[np.float32]

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")
"""The precisions of graphs."""
FOLD_MODES: tuple[FoldMode, ...] = ("weights", "gate", "two-phase")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How the trained scalars were bounded: ``tanh`` means s = 1 + r·tanh(a); ``none`` means free."""

    kind: Literal["tanh", "none"] = "tanh"
    r: float | None = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseIdentity:
    """Which base model the scalars belong to, precisely enough to refuse another one.

    ``tensor_sha256`` maps the module name of every touched weight (``model.language_model.layers.3.
    self_attn.o_proj.weight``) to the SHA-256 of its stored bytes, prefixed by dtype and shape.
    """

    base_model: str
    base_revision: str | None
    model_type: str
    config_sha256: str
    tensor_sha256: Mapping[str, str]
    prompt_template_sha256: str | None
    transformers_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The trained scalars of one ScAle adapter (contract C2).

    Attributes:
        layer_indices: the decoder layers that are scaled, strictly increasing.
        head_scale: one float32 vector ``[H]`` per listed layer, the effective s of each query head.
        mlp_scale: float32 ``[nL]``, the effective s of each listed layer's MLP output.
        training: what the trainer recorded; plain JSON values.
    """

    scope: Scope
    layer_indices: tuple[int, ...]
    head_scale: tuple[Float32, ...]
    mlp_scale: Float32
    mlp_site: MlpSite
    bound: Bound
    num_heads: int
    head_dim: int
    base: BaseIdentity
    training: Mapping[str, Any] = field(default_factory=dict)

    def dense(self, num_layers: int, num_heads: int) -> tuple[Float32, Float32]:
        """The scalars of every layer, ones where a layer is not listed: ``[L, H]`` and ``[L]`` float32."""
        attn = np.ones((num_layers, num_heads), np.float32)
        mlp = np.ones(num_layers, np.float32)
        for row, layer in enumerate(self.layer_indices):
            attn[layer] = self.head_scale[row]
            mlp[layer] = self.mlp_scale[row]
        return attn, mlp

    @property
    def count(self) -> int:
        """How many scalars there are."""
        return sum(v.size for v in self.head_scale) + self.mlp_scale.size

    def save(self, path: Path | str) -> None:
        """Write these to a ``.safetensors`` or ``.pt`` file; see ``coefficients.save_coefficients``."""
        from .coefficients import save_coefficients

        save_coefficients(self, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The shape of a language decoder: all that the portable decoder needs besides weights.

    ``inv_freq`` (``[head_dim / 2]``) and ``rotary_scale`` state the rotary embedding:
    cos(position · inv_freq) · rotary_scale. ``sliding_windows`` holds one entry per layer, None where
    the layer sees everything.
    """

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    inv_freq: tuple[float, ...]
    rotary_scale: float
    max_positions: int
    sliding_windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    mlp_site: MlpSite = "output"

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

    def norms(self) -> list[str]:
        """Every RMSNorm by portable name; each weight is ``[hidden_size]``."""
        per_layer = [
            f"layers.{i}.{n}" for i in range(self.num_layers) for n in ("input_norm", "post_attention_norm")
        ]
        return [*per_layer, "norm"]
