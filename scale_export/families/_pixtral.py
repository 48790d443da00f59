"""What families over Pixtral's tower share: pictures in their own shape, cut into patches of a grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from pydantic import JsonValue

from scale_export.compat.transformers import has_torchvision, model_class, pixtral_without_torchvision
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Processor, ProcessorClass
from scale_export.core.records import Array

from ._family import Family
from ._patches import Grid, axial_turns, merged, stacked
from ._runtime import Runtime, integer, table

ROTARY = "pixtral.modeling_pixtral.PixtralVisionRotaryEmbedding"


class PixtralFamily(Family):
    """Pictures of any grid of patches.

    The processor stretches a picture to whole squares of merge × merge patches, and puts a word after each of their
    rows in the prompt.
    """

    patched = True

    @abstractmethod
    def merge_size(self, config: Config) -> int:
        """The side of the square of patches that becomes one token."""

    def processor_class(self) -> ProcessorClass:
        return super().processor_class() if has_torchvision() else pixtral_without_torchvision()

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        frequencies, _ = model_class(ROTARY).compute_axial_rope_parameters(config.vision_config)
        return {
            "patch": config.vision_config.patch_size,
            "merge": self.merge_size(config),
            "frequencies": frequencies.reshape(2, -1).tolist(),
        }

    def fitting_size(self, processor: Processor, *, side: int | None, tokens: int) -> Mapping[str, int]:
        """The same but for ``longest_edge``, the pixels of a picture's longer side."""
        square = _token_side(processor)
        own = processor.image_processor.size.longest_edge
        if own is None:
            raise UserError(
                "the image processor's size has no longest_edge, the only size that is supported: set it there"
            )
        rows = (math.isqrt(4 * tokens + 1) - 1) // 2  # each of so many tokens, and the word after it
        most = rows * square if side is None else min(rows, side // square) * square
        if most < square:
            raise UserError(
                f"a token covers {square} × {square} pixels, and the target takes at most {side} pixels per side and "
                f"{tokens} tokens: choose another target"
            )
        return {"longest_edge": min(own, most)}

    def most_places(self, processor: Processor, runtime: Runtime) -> int:
        longest, square = processor.image_processor.size.longest_edge, _token_side(processor)
        assert longest is not None  # which ``fitting_size`` refuses
        return int(-(-longest // square)) ** 2

    def tower_inputs(self, inputs: Mapping[str, Array], runtime: Runtime) -> dict[str, Array]:
        """``patches [pictures, places, patches of a place, C]`` and what tells where each lies."""
        sizes = [tuple(int(n) for n in size) for size in inputs["image_sizes"]]
        pictures = zip(inputs["pixel_values"], sizes, strict=True)
        return stacked([_picture_inputs(pixels[:, :h, :w], runtime) for pixels, (h, w) in pictures])

    def pack(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        square = integer(runtime, "patch") * integer(runtime, "merge")
        counts = [int(height) // square * (int(width) // square) for height, width in inputs["image_sizes"]]
        rows = zip(outputs["image_features"], counts, strict=True)
        return np.concatenate([features[:count] for features, count in rows])


def _token_side(processor: Processor) -> int:
    """Pixels of the side of the square that becomes one token."""
    return int(processor.patch_size * processor.spatial_merge_size)


def _picture_inputs(pixels: Array, runtime: Runtime) -> dict[str, Array]:
    """Of one picture, ``[3, height, width]``."""
    patch, merge = integer(runtime, "patch"), integer(runtime, "merge")
    grid: Grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
    patches = pixels.reshape(3, grid[0], patch, grid[1], patch).transpose(1, 3, 0, 2, 4)
    cos, sin = axial_turns(grid, merge, np.asarray(table(runtime, "frequencies"), np.float32))
    return {
        "patches": merged(patches.reshape(*grid, -1), merge),
        "cos": cos,
        "sin": sin,
        "valid": np.ones(len(cos), np.float32),
    }
