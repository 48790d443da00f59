"""Pixtral's tower with Mistral 3's projector over patches that the host laid out; needs torch.

Weights are those of Hugging Face's modules, whose forwards loop over pictures. Here a picture is a row of a batch.
Shapes: B pictures, N patches, D width, M patches of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from scale_export.core.huggingface import Config

from .attention import RmsNorm, as_linear, attend, normed, turn, whole_pictures
from .tower import VisionTower


class _Attention(Protocol):
    num_heads: int
    head_dim: int
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module


class _Layer(Protocol):
    attention_norm: RmsNorm
    attention: _Attention
    ffn_norm: RmsNorm
    feed_forward: nn.Module


class _Transformer(Protocol):
    layers: Sequence[_Layer]


class HuggingFaceTower(Protocol):
    """Pixtral's module."""

    patch_conv: nn.Module
    ln_pre: RmsNorm
    transformer: _Transformer


class _Merger(Protocol):
    merging_layer: nn.Linear


class Mistral3Projector(Protocol):
    """Mistral 3's module."""

    norm: RmsNorm
    patch_merger: _Merger
    linear_1: nn.Module
    act: nn.Module
    linear_2: nn.Module


class PixtralTower(VisionTower):
    """Attention over whole pictures, then M neighbouring patches become one row."""

    def __init__(self, tower: HuggingFaceTower, projector: Mistral3Projector, config: Config) -> None:
        super().__init__()
        self.embedding = as_linear(tower.patch_conv)
        self.first_norm = tower.ln_pre
        depth = len(tower.transformer.layers)
        assert isinstance(config.vision_feature_layer, int)  # the family refuses others
        self.layers = tower.transformer.layers[: range(depth + 1)[config.vision_feature_layer]]
        self.projector = projector
        self.merged: int = config.spatial_merge_size**2
        self.merger = _by_patch(projector.patch_merger.merging_layer, self.merged)
        self.constants = {}

    def encode(self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``patches [B, tokens, M, C]``, ``cos, sin [B, tokens, M, hd / 2]``, ``valid [B, tokens]``."""
        x = normed(self.first_norm, self.embedding(patches).flatten(1, 2))
        mask = whole_pictures(valid.unsqueeze(-1).expand(-1, -1, self.merged).flatten(1))
        cos, sin = cos.flatten(1, 2), sin.flatten(1, 2)
        for layer in self.layers:
            x = x + self.attended(layer.attention, normed(layer.attention_norm, x), cos, sin, mask)
            x = x + layer.feed_forward(normed(layer.ffn_norm, x))
        rows = normed(self.projector.norm, x).reshape(x.shape[0], -1, self.merged * x.shape[-1])
        rows = self.projector.act(self.projector.linear_1(self.merger(rows)))
        return {"image_features": self.projector.linear_2(rows)}

    def attended(self, attention: _Attention, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` → the same."""
        q, k, v = (
            project(x).reshape(*x.shape[:2], attention.num_heads, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed: Tensor = attention.o_proj(attend(turn(q, cos, sin), turn(k, cos, sin), v, mask))
        return mixed


def _by_patch(merger: nn.Linear, patches: int) -> nn.Linear:
    """A matrix over ``[D, M]`` values of a token as one over ``[M, D]``, which is how they lie."""
    weight = merger.weight.detach().unflatten(1, (-1, patches)).transpose(1, 2).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear
