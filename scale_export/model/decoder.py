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
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scale_export.core.records import DecoderSpec
from scale_export.core.words import Activation, Scope

Cache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each ``[B, K, P, hd]``."""


Shared = TypeVar("Shared")
"""What all layers of one forward share, in a form of each kernels' own."""


class Kernels(Protocol[Shared]):
    """The arithmetic that a backend supplies to the decoder."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``[B, T, in]`` → ``[B, T, out]``, with the bias if the matrix has one."""
        ...

    def rms_norm(self, name: str, x: Tensor) -> Tensor: ...

    def add_rms_norm(self, name: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of ``x + residual``, and the sum itself."""
        ...

    def begin(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        attention_group: Tensor | None,
    ) -> Shared:
        """Whatever all layers of one forward share (rotary tables, masks); handed to ``attention``."""
        ...

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: Shared
    ) -> tuple[Tensor, Cache]:
        """Rotary causal attention of ``q [B, T, H·hd]`` over the cache and ``k, v [B, T, K·hd]``.

        Returns the heads' outputs ``[B, T, H·hd]`` and the grown cache.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The ScAle scalars of one forward (``docs/scale.md``).

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


FARTHEST = 2**20
"""More than the tokens of any forward; their count and a flag beside it are exact in float32."""


def last_gated(gated: Tensor) -> Tensor:
    """The last position of each row of ``gated [B, T]`` (ones and zeros) that is one, else T - 1; ``[B]`` int64."""
    steps = torch.arange(gated.shape[1], dtype=torch.float32)
    return torch.argmax(gated * FARTHEST + steps, dim=1)


def gate_factors(gate: Gate, gated: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What each layer multiplies by: s where g[t] = 1, else 1, in ``x``'s dtype.

    Args:
        gated: g itself, ``[B, T]`` float32, or a gate position; see ``PortableDecoder.forward``.

    Returns:
        One factor per layer of ``gate``, which broadcasts over ``[B, T, H, hd]`` for the heads and ``[B, T, D]`` for
        the MLP output.
    """
    return _mixed(gate, gated, x) if gated.is_floating_point() else _chosen(gate, gated, x)


def _mixed(gate: Gate, gated: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """``1 + g · (s - 1)``, in float32: no rank above 4 and no choice between tensors, which some runtimes get wrong."""
    layers, heads = gate.attn_scale.shape
    attn = (gate.attn_scale - 1).reshape(layers, 1, heads, 1)
    mlp = (gate.mlp_scale - 1).reshape(layers, 1, 1)
    by_head, by_token = gated[:, :, None, None], gated[:, :, None]
    return (
        tuple((1 + by_head * delta).to(x.dtype) for delta in torch.split(attn, 1)),
        tuple((1 + by_token * delta).to(x.dtype) for delta in torch.split(mlp, 1)),
    )


def _chosen(gate: Gate, gate_position: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same by the gate's scope and position."""
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
            lies outside this forward, or no position is gated) instead of ``[B, T, V]``.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        kernels: Kernels[Any],
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
        gated: Tensor,
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
            gated: which positions the scalars act on and which logits are asked for: ``[B, T]`` float32, 1 where
                g[t] = 1 and else 0, whatever the gate's scope; or ``[B]`` or ``[1]`` int64, a position that the
                gate's scope explains, see ``last_index``.
            attention_group: ``[B, T]`` int64; tokens of one group, from 0, see one another, those at −1 what came
                before them. A group never spans two forwards. None where the decoder has no groups.
            deepstack: what is added to the output of each of the first layers, ``[B, T, D]``, zero where there
                is no picture.

        Returns:
            logits ``[B, T or 1, V]`` and the grown caches.
        """
        kernels, spec = self.kernels, self.spec
        shared = kernels.begin(inputs_embeds, attention_mask, position_ids, attention_group)
        factors = gate_factors(gate, gated, inputs_embeds) if gate else None
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
            x = self._pick(x, gated)
        return kernels.linear("lm_head", x), presents

    def _norm_heads(self, name: str, x: Tensor) -> Tensor:
        """Each head of ``[B, T, heads · hd]`` through the norm of that name."""
        heads = x.reshape(x.shape[0], x.shape[1], -1, self.spec.head_dim)
        return self.kernels.rms_norm(name, heads).reshape(x.shape)

    def _scale_heads(self, heads: Tensor, factor: Tensor) -> Tensor:
        b, t = heads.shape[0], heads.shape[1]
        split = heads.reshape(b, t, self.spec.num_heads, self.spec.head_dim)
        return (split * factor).reshape(b, t, self.spec.num_heads * self.spec.head_dim)

    def _pick(self, x: Tensor, gated: Tensor) -> Tensor:
        tokens = x.shape[1]
        if gated.is_floating_point():
            index = last_gated(gated)
        else:
            index = last_index(gated, tokens)
            index = torch.where(index < tokens, index, tokens - 1)
        return torch.gather(x, 1, index[:, None, None].expand(x.shape[0], 1, x.shape[2]))
