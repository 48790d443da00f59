"""Pixtral's tower with Mistral 3's or LLaVA's projector over patches that the host laid out; needs torch.

Weights are those of Hugging Face's modules, whose forwards loop over pictures. Here a picture is a row of a batch.
Shapes: B pictures, N patches, D width, M patches of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
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


class _PixtralTower(VisionTower):
    """Attention over whole pictures, a picture a row of a batch."""

    def __init__(self, tower: HuggingFaceTower, most_layers: int) -> None:
        super().__init__()
        self.embedding = as_linear(tower.patch_conv)
        self.first_norm = tower.ln_pre
        self.layers = tower.transformer.layers[:most_layers]
        self.constants = {}

    def states(self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor) -> list[Tensor]:
        """What enters the layers and what comes of each, ``[B, N, D]``; inputs as ``encode`` takes them."""
        found = [normed(self.first_norm, self.embedding(patches).flatten(1, 2))]
        mask = whole_pictures(valid.unsqueeze(-1).expand(-1, -1, patches.shape[2]).flatten(1))
        cos, sin = cos.flatten(1, 2), sin.flatten(1, 2)
        for layer in self.layers:
            x = found[-1]
            x = x + self.attended(layer.attention, normed(layer.attention_norm, x), cos, sin, mask)
            found.append(x + layer.feed_forward(normed(layer.ffn_norm, x)))
        return found

    def attended(self, attention: _Attention, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, D]`` → the same."""
        q, k, v = (
            project(x).reshape(*x.shape[:2], attention.num_heads, attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed: Tensor = attention.o_proj(attend(turn(q, cos, sin), turn(k, cos, sin), v, mask))
        return mixed


class MergedPixtral(_PixtralTower):
    """Mistral 3's: M neighbouring patches become one row."""

    def __init__(self, tower: HuggingFaceTower, projector: Mistral3Projector, config: Config) -> None:
        assert isinstance(config.vision_feature_layer, int)  # the family refuses others
        super().__init__(tower, _state(tower, config.vision_feature_layer))
        self.projector = projector
        self.merged: int = config.spatial_merge_size**2
        self.merger = _by_patch(projector.patch_merger.merging_layer, self.merged)

    def encode(self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``patches [B, tokens, M, C]``, ``cos, sin [B, tokens, M, hd / 2]``, ``valid [B, tokens]``."""
        x = self.states(patches, cos, sin, valid)[-1]
        rows = normed(self.projector.norm, x).reshape(x.shape[0], -1, self.merged * x.shape[-1])
        rows = self.projector.act(self.projector.linear_1(self.merger(rows)))
        return {"image_features": self.projector.linear_2(rows)}


class SelectedPixtral(_PixtralTower):
    """LLaVA's: every patch becomes a row, from the chosen layers side by side."""

    def __init__(self, tower: HuggingFaceTower, projector: nn.Module, config: Config) -> None:
        chosen = config.vision_feature_layer
        layers = (chosen,) if isinstance(chosen, int) else tuple(chosen)
        states = [_state(tower, layer) for layer in layers]
        super().__init__(tower, max(states))
        self.chosen = states
        self.projector = projector

    def encode(self, patches: Tensor, cos: Tensor, sin: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``patches [B, tokens, 1, C]``, ``cos, sin [B, tokens, 1, hd / 2]``, ``valid [B, tokens]``."""
        states = self.states(patches, cos, sin, valid)
        return {"image_features": self.projector(torch.cat([states[i] for i in self.chosen], dim=-1))}


def _state(tower: HuggingFaceTower, layer: int) -> int:
    """Which state a config means by a layer, counted from what enters the first: negative ones from the end."""
    return range(len(tower.transformer.layers) + 1)[layer]


def _by_patch(merger: nn.Linear, patches: int) -> nn.Linear:
    """A matrix over ``[D, M]`` values of a token as one over ``[M, D]``, which is how they lie."""
    weight = merger.weight.detach().unflatten(1, (-1, patches)).transpose(1, 2).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear
