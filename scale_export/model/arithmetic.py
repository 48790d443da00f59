"""The portable decoder's arithmetic in torch: the reference for every backend's kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scale_export.core.records import DecoderSpec

from .decoder import Cache
from .weights import DecoderWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchShared:
    """What the layers of one PyTorch forward share."""

    rotaries: tuple[tuple[Tensor, Tensor], ...]  # cos and sin of each rotary embedding, [B, 1, T, hd]
    visible: Tensor  # [B, 1, T, P + T] bool: not padding, and not to come except in one's own group
    distance: Tensor  # [B, 1, T, P + T] int64, how many tokens back a key lies


def rotary_tables(
    spec: DecoderSpec, position_ids: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Cos and sin of every rotary embedding at ``position_ids [B, T]`` or ``[axes, B, T]``: ``[B, 1, T, hd]``."""
    rows = position_ids if position_ids.ndim == 3 else position_ids[None]
    tables = []
    for rotary in spec.rotaries:
        inv_freq = torch.tensor(rotary.inv_freq, dtype=torch.float32)
        positions = rows[list(rotary.axes)] if spec.position_axes > 1 else rows
        angles = positions.permute(1, 2, 0)[:, None].to(torch.float32) * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        tables.append(((angles.cos() * rotary.scale).to(dtype), (angles.sin() * rotary.scale).to(dtype)))
    return tuple(tables)


class TorchKernels(nn.Module):
    """Plain PyTorch arithmetic in one dtype: the reference that every emitted graph is measured against.

    ``layer`` holds the weights of that layer only (the last one's, with those of the output): for a decoder of one.
    """

    def __init__(
        self, weights: DecoderWeights, dtype: torch.dtype = torch.float32, *, layer: int | None = None
    ) -> None:
        super().__init__()
        self.spec = weights.spec
        self.tensors: dict[str, Tensor] = {}
        for name, (_, _, has_bias) in weights.spec.linears().items():
            if not _of_layer(name, layer, weights.spec):
                continue
            self.tensors[name] = weights.matrix(name).to(dtype)
            if has_bias:
                bias = weights.bias(name)
                assert bias is not None
                self.tensors[f"{name}.bias"] = bias.to(dtype)
        for name in weights.spec.norms():
            if _of_layer(name, layer, weights.spec):
                self.tensors[name] = weights.norm(name).to(dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[name], self.tensors.get(f"{name}.bias"))

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.spec.rms_norm_eps)
        return self.tensors[name] * wide.to(x.dtype)

    def add_rms_norm(self, name: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.rms_norm(name, total), total

    def begin(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        attention_group: Tensor | None,
    ) -> TorchShared:
        assert attention_mask is not None and position_ids is not None  # which emitters may leave out
        tokens, total = inputs_embeds.shape[1], attention_mask.shape[1]
        slots = torch.arange(total)
        new = slots[total - tokens :, None]
        valid = attention_mask.to(torch.bool)[:, None, None, :]
        seen = (slots <= new)[None, None]
        if attention_group is not None:
            group = attention_group[:, None, :, None]
            keys = F.pad(attention_group, (total - tokens, 0), value=-1)[:, None, None, :]
            seen = seen | ((group == keys) & (group >= 0))
        # A padding query sees at least itself: a row of −inf would become NaN and leak through the values.
        visible = (seen & valid) | (slots == new)
        order = attention_mask.cumsum(-1)
        distance = order[:, None, total - tokens :, None] - order[:, None, None, :]
        return TorchShared(
            rotaries=rotary_tables(self.spec, position_ids, inputs_embeds.dtype),
            visible=visible,
            distance=distance,
        )

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: TorchShared
    ) -> tuple[Tensor, Cache]:
        spec = self.spec
        b, t, _ = q.shape
        cos, sin = shared.rotaries[spec.layer_rotaries[layer]]
        q = rotate(q.view(b, t, spec.num_heads, spec.head_dim).transpose(1, 2), cos, sin)
        k = rotate(k.view(b, t, spec.num_kv_heads, spec.head_dim).transpose(1, 2), cos, sin)
        v = v.view(b, t, spec.num_kv_heads, spec.head_dim).transpose(1, 2)
        keys, values = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        window = spec.sliding_windows[layer]
        visible = shared.visible if window is None else shared.visible & (shared.distance < window)
        z = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=visible, scale=spec.attention_scale, enable_gqa=True
        )
        return z.transpose(1, 2).reshape(b, t, spec.num_heads * spec.head_dim), (keys, values)


def _of_layer(name: str, layer: int | None, spec: DecoderSpec) -> bool:
    """Whether a weight is used by a decoder of that one layer; every weight is where it is None."""
    if layer is None or name.startswith(f"layers.{layer}."):
        return True
    return layer == spec.num_layers - 1 and not name.startswith("layers.")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``[B, heads, T, hd]``, halves paired as in Llama (Su et al., 2021)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def empty_cache(spec: DecoderSpec, batch: int, dtype: torch.dtype = torch.float32) -> list[Cache]:
    """A KV cache that holds nothing yet: L pairs of ``[B, K, 0, hd]``."""
    shape = (batch, spec.num_kv_heads, 0, spec.head_dim)
    return [
        (torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(spec.num_layers)
    ]
