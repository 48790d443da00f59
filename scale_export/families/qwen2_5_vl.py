"""Qwen2.5-VL: Qwen2-VL with a tower that looks through windows (Bai et al., 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from scale_export.core.huggingface import Config, Model, Processor
from scale_export.core.records import Array

from ._patches import Grid
from ._qwen import QwenVL, grids, token_grid
from ._runtime import Runtime, integer

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Qwen25VL(QwenVL):
    """``Qwen2_5_VLForConditionalGeneration`` in Hugging Face transformers; pictures, no videos.

    Tokens enter the tower window by window and leave it in that order. A place is as many patches as a whole window
    has; the windows at a picture's edges have fewer and lie close together, across places.
    """

    model_type = "qwen2_5_vl"
    processor = "qwen2_5_vl.processing_qwen2_5_vl.Qwen2_5_VLProcessor"
    vision_rotary = "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLVisionRotaryEmbedding"

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.qwen import WindowTower

        return WindowTower(model.model.visual)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        vision = config.vision_config
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        return super().runtime_config(config) | {"window": side}

    def most_places(self, processor: Processor, runtime: Runtime) -> int:
        tokens: int = integer(runtime, "window") ** 2
        return math.ceil(super().most_places(processor, runtime) / tokens)

    def picture_inputs(self, patches: Array, grid: Grid, runtime: Runtime) -> dict[str, Array]:
        whole = super().picture_inputs(patches, grid, runtime)
        tokens = integer(runtime, "window") ** 2  # of a place
        order, window = by_window(token_grid(grid, runtime), integer(runtime, "window"))
        of_patches = np.repeat(window.astype(np.int32)[:, None], integer(runtime, "merge") ** 2, axis=1)
        named = {"patches": whole["patches"], "cos": whole["cos"], "sin": whole["sin"], "window": of_patches}
        return {name: _in_places(values[order], tokens) for name, values in named.items()}

    def packed(self, features: Array, inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        pictures = []
        for rows, grid in zip(features, grids(inputs), strict=True):
            order, _ = by_window(token_grid(grid, runtime), integer(runtime, "window"))
            pictures.append(rows[np.argsort(order)])
        return np.concatenate(pictures)


def by_window(grid: Grid, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens of a grid, counted row by row, in the order of their windows; and each token's window from 1."""
    rows, columns = np.indices(grid).reshape(2, -1)
    window = rows // side * -(-grid[1] // side) + columns // side + 1
    return np.argsort(window, kind="stable"), window


def _in_places(values: Array, tokens: int) -> Array:
    """``[tokens of a picture, patches, ...]`` → ``[places, patches of a place, ...]``, zeros at the end."""
    filled = np.pad(values, [(0, -len(values) % tokens)] + [(0, 0)] * (values.ndim - 1))
    return filled.reshape(-1, tokens * values.shape[1], *values.shape[2:])


FAMILY = Qwen25VL()
