"""Mistral Small 3.1: Pixtral's tower over pictures in their own shape, four patches to a token (Mistral AI, 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model
from scale_export.core.records import DecoderSpec

from ._pixtral import PixtralFamily
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Mistral3(PixtralFamily):
    """``Mistral3ForConditionalGeneration`` in Hugging Face transformers."""

    model_type = "mistral3"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        if not isinstance(config.vision_feature_layer, int):
            raise UserError(
                f"a Mistral 3 tower with vision_feature_layer {config.vision_feature_layer} is not supported; "
                f"supported: one layer"
            )
        return text_spec(config.text_config)

    def merge_size(self, config: Config) -> int:
        return config.spatial_merge_size

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.pixtral import MergedPixtral

        inner = model.model
        return MergedPixtral(inner.vision_tower, inner.multi_modal_projector, model.config)


FAMILY = Mistral3()
