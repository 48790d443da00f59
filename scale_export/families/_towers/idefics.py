"""The vision tower of SmolVLM and Idefics3 for tiles of one fixed size; needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config

from .tower import VisionTower


class _Embeddings(Protocol):
    num_patches_per_side: int
    image_size: int
    patch_embedding: nn.Conv2d
    position_embedding: nn.Embedding

    def __call__(self, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor: ...


class _Encoder(Protocol):
    layers: Iterable[nn.Module]


class IdeficsTower(Protocol):
    """Hugging Face's module."""

    embeddings: _Embeddings
    encoder: _Encoder
    post_layernorm: nn.Module


class FullTiles(VisionTower):
    """A SigLIP-like tower over tiles without padding, then pixel shuffle and one matrix.

    Hugging Face's module works out position ids from a mask by ``bucketize``, whose rounding repeats some ids
    (with 25 patches a side, the fifth patch gets the fourth's). A full tile always gets the same ones, so what
    the module looks up for one is kept here.
    """

    positions: Tensor

    def __init__(self, tower: IdeficsTower, connector: nn.Module, config: Config):
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.size: int = config.vision_config.image_size
        self.constants = {}
        self.register_buffer("positions", _positions(tower.embeddings), persistent=False)

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        height, width = (int(side) for side in pixel_values.shape[-2:])
        if (height, width) != (self.size, self.size):
            raise UserError(
                f"the processor cuts tiles of {height} × {width} pixels and the tower takes {self.size} × "
                f"{self.size}: set max_image_size to {self.size} in the model's image processor"
            )
        states = self.tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        states = states + self.positions
        for layer in self.tower.encoder.layers:
            states = layer(states, None)
        return {"image_features": self.connector(self.tower.post_layernorm(states))}


@torch.no_grad()
def _positions(embeddings: _Embeddings) -> Tensor:
    """The position embeddings ``[1, side², C]`` that Hugging Face's module adds to the patches of a full tile."""
    side, size = embeddings.num_patches_per_side, embeddings.image_size
    weight: Tensor = embeddings.patch_embedding.weight
    if weight.is_meta:  # shapes only, by which nothing can be looked up
        return weight.new_empty(1, side**2, weight.shape[0])
    found: list[Tensor] = []
    handle = embeddings.position_embedding.register_forward_hook(
        lambda module, args, output: found.append(output)
    )
    embeddings(weight.new_zeros(1, weight.shape[1], size, size), torch.ones(1, side, side, dtype=torch.bool))
    handle.remove()
    return found[0].clone()
