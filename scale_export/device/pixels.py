"""What a processor makes of pictures, as a self-test keeps it and compares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from scale_export.core.huggingface import Processor
from scale_export.core.records import Array

TEXT: Final = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
"""What a processor makes of words."""
VALUES: Final = "pixel_values"


def picture_inputs(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs that pictures make, float32 or int64, by their names; none of a prompt without one."""
    if VALUES not in inputs:
        return {}
    found = {name: np.asarray(value) for name, value in inputs.items() if name not in TEXT}
    return {
        name: np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int64)
        for name, value in found.items()
    }


def levels_per_unit(processor: Processor) -> float:
    """How many 8-bit levels one unit of ``pixel_values`` is, at the most over channels."""
    images = processor.image_processor
    std = np.max(images.image_std) if images.do_normalize else 1.0  # one number, or one for each channel
    return float(std / images.rescale_factor if images.do_rescale else std)


def pixel_levels(expected: Mapping[str, Array], found: Mapping[str, Array], levels: float) -> float:
    """The largest difference of a pixel in 8-bit levels, of which one unit is ``levels``.

    Infinite where another input than the pixels differs, or one is missing or has another shape.
    """
    if expected.keys() != found.keys():
        return float("inf")
    worst = 0.0
    for name, due in expected.items():
        own = found[name]
        if own.shape != due.shape or (name != VALUES and not np.array_equal(own, due)):
            return float("inf")
        if name == VALUES and due.size:
            away = float(np.abs(own.astype(np.float64) - due).max())
            worst = max(worst, away * levels) if np.isfinite(away) else float("inf")
    return worst
