"""The preprocessing leg: the package's own image and prompt path against Hugging Face's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scale_export.core.compare import LargestError, worst_of
from scale_export.core.limits import PIXEL_LEVELS
from scale_export.core.records import Array
from scale_export.device.generation import Inputs

from .numbers import number
from .rows import Row, holds, within
from .shrinking import Shrinking


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingLeg:
    """The largest difference of a pixel, in 8-bit levels, and whether every prompt has the same token ids.

    The error is infinite where one side prepares other arrays, or arrays of other shapes, and where there is no prompt.
    Pictures that the package shrinks are held to the base's processor at the package's size; ``shrunk`` says what that
    size costs, None where no picture is shrunk. ``facts`` is how far a picture prepared by the image facts of
    ``runtime.json`` alone is from the package's processor, None where no file states any, or none can be read.
    """

    name: ClassVar = "preprocessing"
    meaning: ClassVar = "Hugging Face's processor → the package's own"

    error: LargestError
    ids_identical: bool
    cases: int
    shrunk: Shrinking | None = None
    facts: LargestError | None = None

    @property
    def passed(self) -> bool:
        return self.ids_identical and self.error.passed and (self.facts is None or self.facts.passed)

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        rows: tuple[Row, ...] = (
            within(self.name, self.error),
            holds("token ids identical", self.ids_identical),
        )
        if self.facts is not None:
            rows = (*rows, within(self.name, self.facts))
        return rows if self.shrunk is None else (*rows, *self.shrunk.rows(self.name))

    def figures(self) -> Mapping[str, float | None]:
        lost = None if self.shrunk is None else self.shrunk.finite
        return {"preprocessing": self.error.finite, "shrinking": lost}

    def to_json(self) -> dict[str, object]:
        found = {**self.error.to_json(), "ids_identical": self.ids_identical, "cases": self.cases}
        if self.shrunk is not None:
            found["shrunk"] = self.shrunk.to_json()
        if self.facts is not None:
            found["facts"] = {**self.facts.to_json(), "passed": self.facts.passed}
        return {**found, "passed": self.passed}


def preprocessing_leg(
    reference: Sequence[Inputs],
    packaged: Sequence[Inputs],
    levels_per_unit: float,
    shrunk: Shrinking | None = None,
    facts: LargestError | None = None,
) -> PreprocessingLeg:
    """What two processors prepared of the same prompts.

    Args:
        levels_per_unit: how many 8-bit levels one unit of ``pixel_values`` is: 255 · image_std.
        shrunk: what the package's size costs, where it shrinks pictures.
        facts: what ``image_facts.facts_error`` found.
    """
    pairs = list(zip(reference, packaged, strict=True))
    worst = worst_of([_difference(left, right) * levels_per_unit for left, right in pairs])
    return PreprocessingLeg(
        error=LargestError(metric="max pixel difference, 8-bit levels", value=worst, limit=PIXEL_LEVELS),
        ids_identical=all(_same(left["input_ids"], right["input_ids"]) for left, right in pairs),
        cases=len(reference),
        shrunk=shrunk,
        facts=facts,
    )


def _difference(left: Inputs, right: Inputs) -> float:
    """The largest difference of a pixel; infinite where the two can't be compared, 0 without pictures."""
    if left.keys() != right.keys():
        return float("inf")
    if "pixel_values" not in left:
        return 0.0
    one, other = left["pixel_values"], right["pixel_values"]
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(one - other).max(initial=0))


def same_inputs(left: Inputs, right: Inputs) -> bool:
    """Whether two processors prepared the very same."""
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(left: Array, right: Array) -> bool:
    return left.shape == right.shape and bool((left == right).all())
