"""InternVL: InternViT on square tiles, then four neighbouring places become one row (Chen et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scale_export.compat.transformers import has_torchvision, without_videos
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model, ProcessorClass
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower

PROCESSOR = "internvl.processing_internvl.InternVLProcessor"


class InternVL(Family):
    """``InternVLForConditionalGeneration`` in Hugging Face transformers; pictures, no videos.

    The processor cuts a picture into tiles, and every tile gives equally many rows.
    """

    model_type = "internvl"

    def processor_class(self) -> ProcessorClass:
        return super().processor_class() if has_torchvision() else without_videos(PROCESSOR)

    def decoder_spec(self, config: Config) -> DecoderSpec:
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        if not isinstance(layer, int) or strategy != "default":
            raise UserError(
                f"an InternVL tower with vision_feature_layer {layer} and vision_feature_select_strategy "
                f"{strategy!r} is not supported; supported: one layer, 'default'"
            )
        return text_spec(config.text_config)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.tower import ShuffledFeatures

        inner = model.model
        return ShuffledFeatures(inner.vision_tower, inner.multi_modal_projector, model.config)

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """Every picture's tiles row by row, then the whole picture where it was cut; as the processor has them."""
        return inputs["pixel_values"]


FAMILY = InternVL()
