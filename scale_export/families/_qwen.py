"""What the Qwen-VL families share: patches of any grid, squares of which become tokens with places of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from scale_export.compat.transformers import has_torchvision, model_class, without_videos
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, ImageProcessor, Processor, ProcessorClass
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._patches import Grid, axial_turns, stacked
from ._runtime import Runtime, integer, table
from ._text import text_spec


class QwenVL(Family):
    """A family with the processor of Qwen2-VL; pictures, no videos.

    The processor resizes a picture to whole squares of merge × merge patches and lays them square by square. A token's
    position is its count in all three axes, and inside a picture its row and column count from where the picture began;
    what follows goes on from the largest.
    """

    position_axes = 3
    patched = True
    processor: str
    vision_rotary: str
    """Hugging Face's classes, below ``transformers.models``."""

    def processor_class(self) -> ProcessorClass:
        return super().processor_class() if has_torchvision() else without_videos(self.processor)

    def decoder_spec(self, config: Config) -> DecoderSpec:
        return text_spec(config.text_config)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        vision = config.vision_config
        frequencies, _ = model_class(self.vision_rotary).compute_axial_rope_parameters(vision)
        return {
            "image_token_id": self.image_token_id(config),
            "merge": vision.spatial_merge_size,
            "frequencies": [frequencies.tolist()] * 2,
        }

    def fitting_size(self, processor: Processor, *, side: int | None, tokens: int) -> Mapping[str, int]:
        """The same but for ``longest_edge``, which is a number of pixels here."""
        images = processor.image_processor
        smallest, largest = images.size["shortest_edge"], images.size["longest_edge"]
        most = tokens * _token_pixels(images)
        most = min(most, largest) if side is None else min(most, largest, side**2)
        if smallest > most:
            raise UserError(
                f"the image processor makes pictures of at least {smallest:,} pixels, and the target takes "
                f"at most {most:,}: "
                f"lower shortest_edge in its size, or choose another target"
            )
        return {"shortest_edge": smallest, "longest_edge": most}

    def most_places(self, processor: Processor, runtime: Runtime) -> int:
        images = processor.image_processor
        return int(images.size["longest_edge"]) // _token_pixels(images)

    def tower_inputs(self, inputs: Mapping[str, Array], runtime: Runtime) -> dict[str, Array]:
        """``patches [pictures, places, patches of a place, C]`` and what tells where each lies."""
        shapes = grids(inputs)
        starts = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
        patches = np.split(inputs["pixel_values"], starts)
        return stacked([self.picture_inputs(p, g, runtime) for p, g in zip(patches, shapes, strict=True)])

    def picture_inputs(self, patches: Array, grid: Grid, runtime: Runtime) -> dict[str, Array]:
        """The same of one picture, from its patches ``[N, C]``; a place is a square of patches, a token's."""
        square = integer(runtime, "merge") ** 2
        cos, sin = axial_turns(
            grid, integer(runtime, "merge"), np.asarray(table(runtime, "frequencies"), np.float32)
        )
        return {
            "patches": patches.reshape(-1, square, patches.shape[-1]),
            "cos": cos,
            "sin": sin,
            "valid": np.ones(len(cos), np.float32),
        }

    def pack(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        return self.packed(outputs["image_features"], inputs, runtime)

    def packed(self, features: Array, inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        """The pictures' rows ``[pictures, tokens, D]`` one after the other, without what fills them up."""
        shapes = [token_grid(grid, runtime) for grid in grids(inputs)]
        return np.concatenate([rows[: h * w] for rows, (h, w) in zip(features, shapes, strict=True)])

    def positions(self, inputs: Mapping[str, Array], runtime: Runtime) -> NDArray[np.int64]:
        """``[3, 1, T]``: time, row, column. An image token without a picture is a word."""
        at_image = inputs["input_ids"][0] == integer(runtime, "image_token_id")
        pieces: list[NDArray[np.int64]] = []
        token = position = 0
        for grid in grids(inputs) if "image_grid_thw" in inputs else []:
            words = int(np.argmax(at_image[token:]))
            pieces.append(_counted(position, words))
            rows, columns = token_grid(grid, runtime)
            where = np.stack(np.broadcast_arrays(0, *np.indices((rows, columns)))).reshape(3, -1)
            pieces.append(position + words + where)
            token += words + rows * columns
            position += words + max(rows, columns)
        pieces.append(_counted(position, len(at_image) - token))
        return np.concatenate(pieces, axis=1)[:, None]


def _token_pixels(images: ImageProcessor) -> int:
    """Pixels of the square that becomes one token."""
    return int(images.patch_size * images.merge_size) ** 2


def grids(inputs: Mapping[str, Array]) -> list[Grid]:
    """Rows and columns of patches of every picture."""
    return [(int(rows), int(columns)) for _, rows, columns in inputs["image_grid_thw"]]


def token_grid(grid: Grid, runtime: Runtime) -> Grid:
    """Rows and columns of tokens."""
    return grid[0] // integer(runtime, "merge"), grid[1] // integer(runtime, "merge")


def _counted(start: int, count: int) -> NDArray[np.int64]:
    """``[3, count]``: words, each one further in all axes."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count))
