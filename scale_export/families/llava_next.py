"""LLaVA-NeXT (1.6): the picture as tiles of the best-fitting grid plus one overview (Liu et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from scale_export.core.huggingface import Config, Model
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._runtime import Runtime, integer, table
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration`` in Hugging Face transformers."""

    model_type = "llava_next"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        return text_spec(config.text_config)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.tower import SelectedFeatures

        inner = model.model
        constants = {"image_newline": inner.image_newline.detach()}
        return SelectedFeatures(inner.vision_tower, inner.multi_modal_projector, model.config, constants)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        return {
            "grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints],
            "tile_size": config.vision_config.image_size,
            "tile_side": config.vision_config.image_size // config.vision_config.patch_size,
        }

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """Every picture's tiles, overview first; the processor pads pictures with fewer tiles by zeros at the end."""
        pixels = inputs["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])

    def pack(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        features, newline = outputs["image_features"], outputs["image_newline"]
        per_picture = features.reshape(len(inputs["image_sizes"]), -1, *features.shape[1:])
        rows = [
            _pack_picture(tiles, [int(n) for n in size], newline, runtime)
            for tiles, size in zip(per_picture, inputs["image_sizes"], strict=True)
        ]
        return np.concatenate(rows)


def _pack_picture(tiles: Array, size: list[int], newline: Array, runtime: Runtime) -> Array:
    """One picture's rows: its overview, then its grid without the padding, a newline after each grid row.

    Args:
        tiles: ``[tiles, side², D]``, overview first, padding tiles last.
        size: the picture's (height, width) in pixels.
    """
    grid_height, grid_width = tile_grid(size, runtime)
    side, width = integer(runtime, "tile_side"), tiles.shape[-1]
    grid = tiles[1 : 1 + grid_height * grid_width].reshape(grid_height, grid_width, side, side, width)
    plane = grid.transpose(0, 2, 1, 3, 4).reshape(grid_height * side, grid_width * side, width)
    plane = unpadded(plane, size)
    ends = np.broadcast_to(newline, (plane.shape[0], 1, width))
    return np.concatenate((tiles[0], np.concatenate((plane, ends), axis=1).reshape(-1, width)))


def tile_grid(size: list[int], runtime: Runtime) -> tuple[int, int]:
    """How many tiles, down and across, a picture of (height, width) pixels is cut into, the overview aside."""
    height, width = best_resolution(size, table(runtime, "grid_pinpoints"))
    return height // integer(runtime, "tile_size"), width // integer(runtime, "tile_size")


def best_resolution(size: Sequence[int], offered: Sequence[Sequence[float]]) -> tuple[int, int]:
    """The (height, width) that keeps most of a picture's pixels, and of several the one that leaves least unused.

    The first offered of equals; ``select_best_resolution`` of transformers chooses the same.
    """
    height, width = size

    def kept(room: Sequence[float]) -> tuple[float, float]:
        scale = min(room[1] / width, room[0] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - room[0] * room[1]

    best = max(offered, key=kept)
    return int(best[0]), int(best[1])


def unpadded(plane: Array, size: list[int]) -> Array:
    """Cut the rows or columns that only cover the padding which kept the picture's aspect ratio."""
    (rows, columns), (height, width) = plane.shape[:2], size
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return plane[cut : rows - cut]
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return plane[:, cut : columns - cut]


FAMILY = LlavaNext()
