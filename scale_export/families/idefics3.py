"""Idefics3: a picture as tiles and as a whole, each a few rows after pixel shuffle (Laurençon et al., 2024).

The first SmolVLM models are stored as this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration`` in Hugging Face transformers.

    The processor stretches a picture to whole tiles, puts them row by row with the whole picture last, and
    names each tile's place in the prompt.
    """

    model_type = "idefics3"
    text_prefix = "model.text_model"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        return text_spec(config.text_config)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.idefics import FullTiles

        return FullTiles(model.model.vision_model, model.model.connector, model.config)

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """Every prompt's tiles; those of zeros alone only make prompts equally long, as Hugging Face has it.

        Raises:
            UserError: a tile is padded, which this tower has no positions for.
        """
        pixels = inputs["pixel_values"]
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        real = pixels.any(axis=(1, 2, 3))
        mask = inputs.get("pixel_attention_mask")
        if mask is not None and not mask.reshape(-1, *mask.shape[-2:])[real].all():
            raise UserError(
                "the pixel_attention_mask leaves out a part of a tile, and only full tiles are supported: "
                "prepare the picture with the model's own processor"
            )
        return pixels[real]


FAMILY = Idefics3()
