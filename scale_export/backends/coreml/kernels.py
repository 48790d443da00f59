"""The decoder's arithmetic for ``torch.jit.trace`` and Core ML's converter.

Rules:
1. Matrices stay outside the trace: ``linear`` leaves a named marker, which the converter replaces by the
   matrix in its final storage type. A traced decoder holds norms only.
2. An RMS norm is Core ML's fused layer norm over x beside −x, whose mean is zero: one rounding to float16 where
   separate squares, means and roots round five times and overflow beyond 255.
3. Numbers of a program are float16 ones: a factor that is none is two, see ``float16_factors``.
4. Key/value heads are never repeated: the queries of a group stand below one another instead, so that
   attention stays Core ML's fused operator over the cache as it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scale_export.core.records import DecoderSpec
from scale_export.families._towers.attention import fused_rms_norm
from scale_export.model.arithmetic import rotate
from scale_export.model.decoder import Cache

MARKER = "scale_export::linear"
"""The traced operator that stands for a matrix product."""

HIDDEN: float = -6e4
"""What a mask adds to the score of a slot that is not to be seen; float16 reaches to 65,504."""

SMALLEST = 2.0**-24
"""The smallest positive float16: a norm's epsilon below it would be none, and rows of zeros become NaN."""


@torch.library.custom_op(MARKER, mutates_args=())
def _linear(x: Tensor, name: str, out_features: int) -> Tensor:
    return x.new_zeros((*x.shape[:-1], out_features))


def float16_factors(value: float) -> tuple[float, ...]:
    """Numbers that float16 holds and whose product is ``value`` (from 0.1 to 10): one, or two within 2^-19 of it."""
    if float(np.float16(value)) == value:
        return () if value == 1 else (value,)
    first = 1 + np.arange(1024) / 1024  # all that float16 has from 1 to 2
    second = (value / first).astype(np.float16).astype(np.float64)
    best = int(np.argmin(np.abs(first * second - value)))
    return float(first[best]), float(second[best])


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the T new tokens of a forward stand.

    Attributes:
        rotaries: cos and sin ``[T, hd]`` of each rotary embedding at their positions, worked out by the host.
        position: int32 ``[1]``, the cache slot of the first of them.
        attention_group: int32 ``[T]``, see ``PortableDecoder.forward``; None where all are causal.
    """

    rotaries: tuple[tuple[Tensor, Tensor], ...]
    position: Tensor
    attention_group: Tensor | None = None


class CoreMLKernels(nn.Module):
    """Traceable arithmetic over a cache that is written in place.

    Args:
        norms: the weight of every norm that this part of the decoder reads.
        first_layer: the layer whose keys and values are the cache's first.
        residual_scale: what the residual stream carries as a factor.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        placement: Placement,
        norms: Mapping[str, Tensor],
        *,
        first_layer: int,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.placement = placement
        self.norms = norms
        self.first_layer = first_layer
        self.residual_eps = max(spec.rms_norm_eps * residual_scale**2, SMALLEST)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = _linear(x, name, self.spec.linears()[name][0])
        return y

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        reads_residual = name.rpartition(".")[2] in ("input_norm", "mlp_norm", "norm")
        eps = self.residual_eps if reads_residual else self.spec.rms_norm_eps
        return fused_rms_norm(x, self.norms[name], eps)

    def add_rms_norm(self, name: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return self.rms_norm(name, total), total

    def begin(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        attention_group: Tensor | None,
    ) -> dict[int | None, Tensor]:
        """A mask ``[G · T, C]`` for every window among the layers; G query heads share a key/value head."""
        return {}

    def _mask(self, cache: Tensor, tokens: int, window: int | None, dtype: torch.dtype) -> Tensor:
        slots = torch.arange(cache.shape[2], dtype=torch.int32)[None]
        rows = (self.placement.position + torch.arange(tokens, dtype=torch.int32))[:, None]
        hidden = slots > rows
        group = self.placement.attention_group
        if group is not None:
            keys = torch.full((cache.shape[2],), -1, dtype=torch.int32)
            keys[self.placement.position : self.placement.position + tokens] = group
            together = torch.logical_and(group[:, None] == keys[None], group[:, None] >= 0)
            hidden = torch.logical_and(hidden, torch.logical_not(together))
        if window is not None:
            hidden = torch.logical_or(hidden, slots <= rows - window)
        mask = hidden.to(dtype) * HIDDEN  # not torch.where, whose two numbers would be stored as whole masks
        return mask.repeat(self.spec.num_heads // self.spec.num_kv_heads, 1)

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: dict[int | None, Tensor]
    ) -> tuple[Tensor, Cache]:
        """See ``Kernels.attention``; the cache is ``[layers, K, C, hd]`` with this layer's rows inside."""
        spec, row = self.spec, layer - self.first_layer
        tokens, window = q.shape[1], spec.sliding_windows[layer]
        if window not in shared:
            shared[window] = self._mask(past[0], tokens, window, q.dtype)
        start, rotary = self.placement.position, self.placement.rotaries[spec.layer_rotaries[layer]]
        q = rotate(self._heads(q, spec.num_heads), *rotary)
        k = rotate(self._heads(k, spec.num_kv_heads), *rotary)
        if spec.attention_scale is not None:  # the fused operator divides by √head_dim, whatever it is told
            for factor in float16_factors(spec.attention_scale * spec.head_dim**0.5):
                q = q * factor
        v = self._heads(v, spec.num_kv_heads)
        past[0][row : row + 1, :, start : start + tokens] = k
        past[1][row : row + 1, :, start : start + tokens] = v
        keys, values = (cache[row : row + 1] for cache in past)
        groups = q.reshape(1, spec.num_kv_heads, -1, spec.head_dim)
        z = F.scaled_dot_product_attention(groups, keys, values, attn_mask=shared[window])
        z = z.reshape(1, spec.num_heads, tokens, spec.head_dim).transpose(1, 2)
        return z.reshape(1, tokens, spec.num_heads * spec.head_dim), past

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(1, x.shape[1], heads, self.spec.head_dim).transpose(1, 2)
