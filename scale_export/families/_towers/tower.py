"""Vision towers: Hugging Face's own modules, wrapped with their projector for export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from scale_export.core.huggingface import Config
from scale_export.core.records import TowerInput


class VisionTower(nn.Module):
    """A tower with its projector: what ``Family.tower_inputs`` gives → named outputs.

    ``constants`` are named tensors that the host needs beside the computed outputs.
    """

    constants: dict[str, Tensor]

    def encode(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What is computed from the pictures, among it ``image_features [tiles or pictures, tokens, D]``."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Tensor]:
        constants = {name: value.clone() for name, value in self.constants.items()}
        return {**self.encode(*inputs, **named), **constants}

    def computed(self, example: Mapping[str, Tensor]) -> list[str]:
        """The names of what ``encode`` gives, worked out on shapes alone: values take a large tower minutes."""
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as shapes:
            return list(self.encode(**{name: shapes.from_tensor(value) for name, value in example.items()}))


def example_inputs(inputs: Mapping[str, TowerInput], pictures: int) -> dict[str, Tensor]:
    """Zeros of a tower's inputs by name, for so many pictures or tiles."""
    return {
        name: torch.zeros(pictures, *i.shape, dtype=torch.int32 if i.integer else torch.float32)
        for name, i in inputs.items()
    }


class SelectedFeatures(VisionTower):
    """A tower whose chosen hidden layers go through a projector, as in LLaVA and LLaVA-NeXT."""

    def __init__(
        self,
        tower: nn.Module,
        projector: nn.Module,
        config: Config,
        constants: dict[str, Tensor] | None = None,
    ):
        super().__init__()
        self.tower = tower
        self.projector = projector
        layers = config.vision_feature_layer
        self.layers: tuple[int, ...] = (layers,) if isinstance(layers, int) else tuple(layers)
        self.drop_class_token = config.vision_feature_select_strategy == "default"
        self.constants = dict(constants or {})

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = [states[layer][:, 1:] if self.drop_class_token else states[layer] for layer in self.layers]
        return {"image_features": self.projector(torch.cat(chosen, dim=-1))}


class _PatchEmbeddings(Protocol):
    patch_shape: tuple[int, int]

    def __call__(self, pixel_values: Tensor) -> Tensor: ...


class _InternEmbeddings(Protocol):
    patch_embeddings: _PatchEmbeddings
    cls_token: Tensor
    position_embeddings: Tensor | None


class _InternEncoder(Protocol):
    layer: Iterable[nn.Module]


class InternTower(Protocol):
    """InternVL's module."""

    embeddings: _InternEmbeddings
    encoder: _InternEncoder
    layernorm: nn.Module


class ShuffledFeatures(VisionTower):
    """InternVL's tower, whose patches are merged by pixel shuffle and go through a projector.

    Hugging Face's module resizes its position embeddings whenever it is traced; here the tiles have the size of
    the config, so they enter as they are.
    """

    def __init__(self, tower: InternTower, projector: nn.Module, config: Config):
        super().__init__()
        self.tower = tower
        self.projector = projector
        assert isinstance(config.vision_feature_layer, int)  # the family refuses others
        self.layer = config.vision_feature_layer
        self.factor = int(1 / config.downsample_ratio)
        self.side = tower.embeddings.patch_embeddings.patch_shape[0]
        self.constants = {}

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings(pixel_values)
        first = embeddings.cls_token.expand(patches.shape[0], -1, -1)
        states = [torch.cat((first, patches), dim=1)]
        if embeddings.position_embeddings is not None:
            states = [states[0] + embeddings.position_embeddings]
        for layer in self.tower.encoder.layer:
            states.append(layer(states[-1]))
        chosen = self.tower.layernorm(states[-1]) if self.layer == -1 else states[self.layer]
        return {"image_features": self.projector(self.shuffled(chosen[:, 1:]))}

    def shuffled(self, patches: Tensor) -> Tensor:
        """``[tiles, side², C]`` → ``[tiles, (side / f)², f²·C]``: squares of f × f places, row by row."""
        factor, side, width = self.factor, self.side // self.factor, patches.shape[-1]
        strips = patches.reshape(-1, factor, side, factor * width).transpose(1, 2)
        return strips.reshape(-1, side * side, factor * factor * width)
