"""The portable decoder: one small language decoder that every backend is emitted from.

Its structure (norms, projections, attention over a KV cache, gated MLP, the ScAle gate) stands here once.
The arithmetic is asked of ``Kernels``: plain PyTorch for the reference, a runtime's fused operators when a
graph is emitted. Kernels own the weights, so that an emitter can put packed or lazy tensors in their place.

Shapes: B batch, T new tokens, P tokens already in the cache, D hidden size, L layers, H query heads,
K key/value heads, hd head_dim, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scale_export.core.records import Activation, DecoderSpec, Scope

from .weights import DecoderWeights

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each ``[B, K, P, hd]``."""


class Kernels(Protocol):
    """The arithmetic that a backend supplies to the decoder."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``[B, T, in]`` → ``[B, T, out]``, with the bias if the matrix has one."""
        ...

    def rms_norm(self, name: str, x: Tensor) -> Tensor: ...

    def add_rms_norm(self, name: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of ``x + residual``, and the sum itself."""
        ...

    def begin(
        self, inputs_embeds: Tensor, attention_mask: Any, position_ids: Any, attention_group: Any
    ) -> Any:
        """Whatever all layers of one forward share (rotary tables, masks); handed to ``attention``."""
        ...

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: Any
    ) -> tuple[Tensor, Cache]:
        """Rotary causal attention of ``q [B, T, H·hd]`` over the cache and ``k, v [B, T, K·hd]``.

        Returns the heads' outputs ``[B, T, H·hd]`` and the grown cache.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The ScAle scalars of one forward (contract C1).

    Attributes:
        scope: ``last`` gates one position per row, ``all`` every position.
        attn_scale: ``[L, H]`` float32.
        mlp_scale: ``[L]`` float32.
    """

    scope: Scope
    attn_scale: Tensor
    mlp_scale: Tensor


def last_index(gate_position: Tensor, tokens: int) -> Tensor:
    """``gate_position [B]`` or ``[1]`` with negatives counted from the end of T tokens; may be T or more."""
    return torch.where(gate_position < 0, gate_position + tokens, gate_position)


def gate_factors(
    gate: Gate, gate_position: Tensor, x: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What each layer multiplies by: s where g[t] = 1, else 1, in ``x``'s dtype.

    Returns:
        One factor per layer of ``gate``: ``[1, B or 1, T or 1, H, 1]`` for the heads and
        ``[B or 1, T or 1, 1]`` for the MLP output.
    """
    tokens = x.shape[1]
    layers, heads = gate.attn_scale.shape
    attn = gate.attn_scale.reshape(layers, 1, 1, heads, 1).to(x.dtype)
    mlp = gate.mlp_scale.reshape(layers, 1, 1, 1).to(x.dtype)
    if gate.scope == "last":
        steps = torch.arange(tokens, dtype=torch.int64)
        gated = steps.unsqueeze(0) == last_index(gate_position, tokens).unsqueeze(1)
        attn = torch.where(gated[None, :, :, None, None], attn, 1.0)
        mlp = torch.where(gated[None, :, :, None], mlp, 1.0)
    per_layer: tuple[Tensor, ...] = torch.split(attn, 1)
    return per_layer, tuple(m.squeeze(0) for m in torch.split(mlp, 1))


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


class PortableDecoder(nn.Module):
    """A pre-norm decoder with grouped-query attention, rotary positions and a gated MLP.

    What ``spec`` adds: norms of query and key heads, norms on what attention and MLP give (then the MLP's scalar
    acts after its norm), tokens that see their group, visual features on the first layers' outputs.

    Args:
        layers: the layers that this part of a split decoder holds, all of them by default. A part that
            does not begin with layer 0 takes hidden states in place of embeddings, and one that does not
            end with the last layer returns hidden states ``[B, T, D]`` in place of logits.
        last_logits_only: return logits ``[B, 1, V]`` at the gate position (the last position where it
            lies outside this forward) instead of ``[B, T, V]``.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        kernels: Kernels,
        *,
        layers: range | None = None,
        last_logits_only: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        self.layers = range(spec.num_layers) if layers is None else layers
        self.last_logits_only = last_logits_only

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: list[Cache],
        gate: Gate | None,
        gate_position: Tensor,
        attention_group: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Cache]]:
        """One prefill, prefill chunk or decode step.

        Args:
            inputs_embeds: ``[B, T, D]``.
            attention_mask: ``[B, P + T]`` int64; 1 where the cache or the new tokens hold a token. None, as
                the next, for kernels that were told otherwise where the new tokens stand.
            position_ids: ``[B, T]`` int64, or ``[axes, B, T]`` where positions have several axes.
            past: one cache per layer of this part (P may be 0).
            gate: the scalars of this part's layers, or None where they are folded into the weights.
            gate_position: ``[B]`` or ``[1]`` int64; see ``last_index``.
            attention_group: ``[B, T]`` int64; tokens of one group, from 0, see one another, those at −1 what came
                before them. A group never spans two forwards. None where the decoder has no groups.
            deepstack: what is added to the output of each of the first layers, ``[B, T, D]``, zero where there
                is no picture.

        Returns:
            logits ``[B, T or 1, V]`` and the grown caches.
        """
        kernels, spec = self.kernels, self.spec
        shared = kernels.begin(inputs_embeds, attention_mask, position_ids, attention_group)
        factors = gate_factors(gate, gate_position, inputs_embeds) if gate else None
        activation = ACTIVATIONS[spec.activation]
        residual = inputs_embeds
        x = kernels.rms_norm(f"layers.{self.layers[0]}.input_norm", inputs_embeds)
        presents: list[Cache] = []
        for row, i in enumerate(self.layers):
            name = f"layers.{i}"
            q, k, v = (kernels.linear(f"{name}.{part}_proj", x) for part in "qkv")
            if spec.qk_norm:
                q, k = self._norm_heads(f"{name}.q_norm", q), self._norm_heads(f"{name}.k_norm", k)
            heads, present = kernels.attention(i, q, k, v, past[row], shared)
            presents.append(present)
            if factors:
                heads = self._scale_heads(heads, factors[0][row])
            attended = kernels.linear(f"{name}.o_proj", heads)
            if spec.sandwich_norms:
                attended = kernels.rms_norm(f"{name}.attention_output_norm", attended)
            x, residual = kernels.add_rms_norm(f"{name}.mlp_norm", attended, residual)
            mlp = activation(kernels.linear(f"{name}.gate_proj", x)) * kernels.linear(f"{name}.up_proj", x)
            mlp = kernels.linear(f"{name}.down_proj", mlp)
            if spec.sandwich_norms:
                mlp = kernels.rms_norm(f"{name}.mlp_output_norm", mlp)
            if factors:
                mlp = mlp * factors[1][row]
            if row < len(deepstack):
                mlp = mlp + deepstack[row]
            if i + 1 == self.layers.stop < spec.num_layers:
                return residual + mlp, presents
            next_norm = f"layers.{i + 1}.input_norm" if i + 1 < spec.num_layers else "norm"
            x, residual = kernels.add_rms_norm(next_norm, mlp, residual)
        if self.last_logits_only:
            x = self._pick(x, gate_position)
        return kernels.linear("lm_head", x), presents

    def _norm_heads(self, name: str, x: Tensor) -> Tensor:
        """Each head of ``[B, T, heads · hd]`` through the norm of that name."""
        heads = x.reshape(x.shape[0], x.shape[1], -1, self.spec.head_dim)
        return self.kernels.rms_norm(name, heads).reshape(x.shape)

    def _scale_heads(self, heads: Tensor, factor: Tensor) -> Tensor:
        b, t = heads.shape[0], heads.shape[1]
        split = heads.reshape(b, t, self.spec.num_heads, self.spec.head_dim)
        return (split * factor).reshape(b, t, self.spec.num_heads * self.spec.head_dim)

    def _pick(self, x: Tensor, gate_position: Tensor) -> Tensor:
        tokens = x.shape[1]
        index = last_index(gate_position, tokens)
        index = torch.where(index < tokens, index, tokens - 1)
        return torch.gather(x, 1, index[:, None, None].expand(x.shape[0], 1, x.shape[2]))


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
        attention_mask: Tensor,
        position_ids: Tensor,
        attention_group: Tensor | None,
    ) -> TorchShared:
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
