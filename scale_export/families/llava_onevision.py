"""LLaVA-OneVision: tiles of a large grid, shrunk where they are too many; several pictures whole (Li et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from scale_export.compat.transformers import has_torchvision, without_videos
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, ProcessorClass
from scale_export.core.records import Array, DecoderSpec

from ._runtime import Runtime, integer
from .llava_next import LlavaNext, tile_grid, unpadded

ASPECT_RATIO = "anyres_max_"

PROCESSOR = "llava_onevision.processing_llava_onevision.LlavaOnevisionProcessor"


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration`` in Hugging Face transformers; pictures, no videos.

    Tower, projector and newline are LLaVA-NeXT's; a picture alone in its prompt comes in tiles, overview first,
    and one of several comes whole, padded to a square by the processor.
    """

    model_type = "llava_onevision"

    def processor_class(self) -> ProcessorClass:
        return super().processor_class() if has_torchvision() else without_videos(PROCESSOR)

    def decoder_spec(self, config: Config) -> DecoderSpec:
        _max_tiles(config)  # refused before a weight is loaded
        return super().decoder_spec(config)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        return super().runtime_config(config) | {"max_tiles": _max_tiles(config)}

    def pack(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        features, newline = outputs["image_features"], outputs["image_newline"]
        sizes, counts = inputs["image_sizes"], inputs["batch_num_images"]
        per_picture = features.reshape(len(sizes), -1, *features.shape[1:])
        rows = [
            _pack_tiles(tiles, [int(n) for n in size], newline, runtime)
            if alone
            else np.concatenate((tiles[0], newline[None]))
            for tiles, size, alone in zip(per_picture, sizes, np.repeat(counts == 1, counts), strict=True)
        ]
        return np.concatenate(rows)


def _max_tiles(config: Config) -> int:
    """How many tiles' worth of rows a grid may keep: the 9 of ``anyres_max_9``."""
    kind = str(config.vision_aspect_ratio)
    if not kind.removeprefix(ASPECT_RATIO).isdecimal():
        raise UserError(
            f"vision_aspect_ratio {kind!r} is not supported, because Hugging Face has no rule for it; "
            f"supported: {ASPECT_RATIO}N"
        )
    return int(kind.removeprefix(ASPECT_RATIO))


def _pack_tiles(tiles: Array, size: list[int], newline: Array, runtime: Runtime) -> Array:
    """One picture's rows: its overview, then its grid without padding and shrunk, a newline after each grid row.

    Args:
        tiles: ``[tiles, side², D]``, overview first, padding tiles last.
        size: the picture's (height, width) in pixels.
    """
    height, width = tile_grid(size, runtime)
    side, depth = integer(runtime, "tile_side"), tiles.shape[-1]
    grid = tiles[1 : 1 + height * width].reshape(height, width, side, side, depth)
    plane = unpadded(grid.transpose(0, 2, 1, 3, 4).reshape(height * side, width * side, depth), size)
    plane = _shrink(plane, integer(runtime, "max_tiles") * side**2)
    ends = np.broadcast_to(newline, (plane.shape[0], 1, depth))
    return np.concatenate((tiles[0], np.concatenate((plane, ends), axis=1).reshape(-1, depth)))


def _shrink(plane: Array, most: int) -> Array:
    """``[rows, columns, D]`` with about ``most`` places, if it has clearly more."""
    rows, columns = plane.shape[:2]
    ratio = math.sqrt(rows * columns / most)
    if ratio <= 1.1:
        return plane
    return interpolate(interpolate(plane, int(rows // ratio), axis=0), int(columns // ratio), axis=1)


def interpolate(plane: Array, length: int, *, axis: int) -> Array:
    """One axis of ``torch.nn.functional.interpolate(mode="bilinear")``: linear between the centres of places."""
    old = plane.shape[axis]
    centres = np.maximum((np.arange(length) + 0.5) * (old / length) - 0.5, 0)
    below = centres.astype(np.int64)
    share = np.expand_dims((centres - below).astype(plane.dtype), tuple({0, 1, 2} - {axis}))
    above = np.minimum(below + 1, old - 1)
    mixed: Array = (1 - share) * plane.take(below, axis) + share * plane.take(above, axis)
    return mixed


FAMILY = LlavaOnevision()
