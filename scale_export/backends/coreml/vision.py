"""Emitting the vision tower with its projector, of fixed shapes, one tile or picture per call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from scale_export.core.records import TowerInput
from scale_export.families._towers.tower import VisionTower, example_inputs

from .convert import convert_function, save_functions


class ScaledFeatures(VisionTower):
    """A tower whose image features, and constant rows among them, carry the factor of the residual stream."""

    def __init__(self, tower: VisionTower, scale: float) -> None:
        super().__init__()
        self.tower = tower
        self.scale = scale
        self.constants = {name: value * scale for name, value in tower.constants.items()}

    def encode(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.tower.encode(**inputs)
        if self.scale == 1:
            return outputs
        return outputs | {"image_features": outputs["image_features"] * self.scale}


class _Face(nn.Module):
    """The tower's computed outputs as a tuple, which is what the tracer takes."""

    def __init__(self, tower: VisionTower, names: Sequence[str]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.tower.encode(**dict(zip(self.names, inputs, strict=True))).values())


def emit_vision(tower: VisionTower, inputs: Mapping[str, TowerInput], path: Path, *, half: bool) -> None:
    """Write ``vision.mlpackage``: ``inputs`` of one tile or picture → the tower's computed outputs.

    Args:
        tower: float32; see ``Family.vision_module``. It is traced with weights in place, since towers are
            small beside decoders.
    """
    example = example_inputs(inputs, 1)
    names = tower.computed(example)
    face = _Face(tower, list(example)).eval()
    program = convert_function(face, example, outputs=names, states={}, half=half)
    save_functions({"main": program}, path)
