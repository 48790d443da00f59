"""What onnxruntime-genai's runtime is told of a package: its configuration, and a prompt as its graphs take it.

That runtime joins vision tower, embedding and decoder in ways of its own; ``genai_graphs`` fits ours to them. It also
counts positions on its own, by the configuration's model type. Nothing here imports torch or onnx: a device needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Array
from scale_export.device.engine import tower_feeds
from scale_export.families._family import Family
from scale_export.families._runtime import Runtime

CONFIG: Final = "genai_config.json"
MODEL_TYPES: Final = frozenset({"gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl"})
"""The families whose pictures onnxruntime-genai 0.18 takes and whose packages were seen to answer there as here."""

PLACES: Final = "image_places"
"""Input of the vision graph: which picture or tile, and which of its rows, each image token of the prompt shows."""
COUNT: Final = "num_image_tokens"
GRID: Final = "image_grid_thw"
"""Names that the runtime itself looks for."""


def genai_inputs(
    inputs: Mapping[str, Array], family: Family, runtime: Runtime, image_token_id: int
) -> dict[str, Array]:
    """A prepared prompt, ``input_ids [1, T]`` and its pictures, as the runtime's named tensors."""
    ids = inputs["input_ids"].astype(np.int32)
    count = int((ids == image_token_id).sum()) if "pixel_values" in inputs else 0
    named: dict[str, Array] = {"input_ids": ids, COUNT: np.array([count], np.int64)}
    if count:
        tower = tower_feeds(family.tower_inputs(inputs, runtime))
        pictures, *inner = next(iter(tower.values())).shape
        # Of a patched picture, a place of so many patches has at most as many rows.
        rows = inner[0] * inner[1] if family.patched else count // pictures
        named |= {**tower, PLACES: image_places(inputs, family, runtime, (pictures, rows))}
    if GRID in inputs:
        named[GRID] = inputs[GRID].astype(np.int64)
    return {name: np.ascontiguousarray(value) for name, value in named.items()}  # it reads memory as it lies


def image_places(
    inputs: Mapping[str, Array], family: Family, runtime: Runtime, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """``[image tokens, 2]``: what ``pack`` takes from a tower's output of ``shape`` or less, as indices into it."""
    places = np.moveaxis(np.indices(shape, np.int64), 0, -1)
    return family.pack({"image_features": places}, inputs, runtime)
