"""What an examination came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One link of the chain.

    Attributes:
        passed: None where the stage is told and not held to a limit.
        place: the part of the model where it departs, or None.
        words: what was found, in a sentence.
        table: further numbers by matrix, the largest first.
    """

    name: str
    passed: bool | None
    words: str
    value: float | None = None
    limit: float | None = None
    place: str | None = None
    table: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The stages in order, and the known faults that fit what was seen."""

    stages: tuple[Stage, ...]
    known_faults: tuple[str, ...]
    failed_legs: tuple[str, ...]

    @property
    def fault(self) -> Stage | None:
        """The first stage that failed."""
        return next((stage for stage in self.stages if stage.passed is False), None)
