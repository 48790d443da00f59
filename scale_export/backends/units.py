"""Engines whose graphs take embeddings times a factor, in the units of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from scale_export.core.records import Array, Float32
from scale_export.device.engine import Engine, Held, Phase, Scalars, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseUnits:
    """An engine in whose graphs embedded tokens and pictures carry ``factor``, a power of two, so that nothing rounds.

    Attributes:
        pictures: the tower's outputs that carry it too.
    """

    engine: Engine
    factor: float
    pictures: Set[str]

    @property
    def hidden_size(self) -> int:
        return self.engine.hidden_size

    @property
    def executed_by(self) -> str:
        return self.engine.executed_by

    @property
    def can_override(self) -> bool:
        return self.engine.can_override

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self.engine.vision(inputs)
        return {n: value / self.factor if n in self.pictures else value for n, value in outputs.items()}

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        embeds: Array = self.engine.embed(input_ids, image_features * self.factor) / self.factor
        return embeds

    def new_cache(self, rows: int) -> Any:
        return self.engine.new_cache(rows)

    def held_cache(self, held: Held) -> Any:
        return self.engine.held_cache(held)

    def cut(self, cache: Any, tokens: int) -> None:
        self.engine.cut(cache, tokens)

    def keys(self, layer: int, step: Step, phase: Phase) -> Float32 | None:
        return self.engine.keys(layer, self._carrying(step), phase)

    def forward(self, cache: Any, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        return self.engine.forward(cache, self._carrying(step), scalars, phase)

    def _carrying(self, step: Step) -> Step:
        return replace(step, inputs_embeds=step.inputs_embeds * self.factor)
