"""Vision towers: Hugging Face's own modules, wrapped with their projector for export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class VisionTower(nn.Module):
    """A tower with its projector: ``pixel_values [tiles, 3, height, width]`` → named outputs.

    ``constants`` are named tensors that the host needs beside the computed outputs.
    """

    constants: dict[str, Tensor]

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """What is computed from the pixels, among it ``image_features [tiles, tokens, D]``."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        constants = {name: value.clone() for name, value in self.constants.items()}
        return {**self.encode(pixel_values), **constants}


class SelectedFeatures(VisionTower):
    """A tower whose chosen hidden layers go through a projector, as in LLaVA and LLaVA-NeXT."""

    def __init__(
        self, tower: nn.Module, projector: nn.Module, config: Any, constants: dict[str, Tensor] | None = None
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
