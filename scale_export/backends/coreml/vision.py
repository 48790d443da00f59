"""Emitting the vision tower with its projector, at a fixed tile size, one tile per call."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...vision import VisionTower
from .convert import convert_function, save_functions


class ScaledFeatures(VisionTower):
    """A tower whose image features, and constant rows among them, carry the factor of the residual stream."""

    def __init__(self, tower: VisionTower, scale: float) -> None:
        super().__init__()
        self.tower = tower
        self.scale = scale
        self.constants = {name: value * scale for name, value in tower.constants.items()}

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        outputs = self.tower.encode(pixel_values)
        if self.scale == 1:
            return outputs
        return outputs | {"image_features": outputs["image_features"] * self.scale}


class _Face(nn.Module):
    """The tower's computed outputs as a tuple, which is what the tracer takes."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.tower.encode(pixel_values).values())


def emit_vision(tower: VisionTower, pixel_shape: tuple[int, int, int], path: Path, *, half: bool) -> None:
    """Write ``vision.mlpackage``: ``pixel_values [1, 3, height, width]`` → the tower's computed outputs.

    Args:
        tower: float32; see ``Family.vision_module``. It is traced with weights in place, since towers are
            small beside decoders.
        pixel_shape: (3, height, width).
    """
    example = torch.zeros(1, *pixel_shape)
    with torch.no_grad():
        names = list(tower.encode(example))
    program = convert_function(
        _Face(tower).eval(), {"pixel_values": example}, outputs=names, states={}, half=half
    )
    save_functions({"main": program}, path)
