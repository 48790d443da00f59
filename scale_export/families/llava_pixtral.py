"""Pixtral 12B: LLaVA's class over Pixtral's tower, every patch a token (Mistral AI, 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model
from scale_export.core.records import DecoderSpec

from ._pixtral import PixtralFamily
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class LlavaPixtral(PixtralFamily):
    """``LlavaForConditionalGeneration`` in Hugging Face transformers, where its ``vision_config`` is Pixtral's."""

    model_type = "llava_pixtral"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        strategy = config.vision_feature_select_strategy
        if strategy != "full":
            raise UserError(
                f"vision_feature_select_strategy {strategy!r} leaves out a picture's first patch, which is no class "
                f"token in Pixtral's tower, so that patches and words don't match: set it to 'full' in config.json"
            )
        return text_spec(config.text_config)

    def merge_size(self, config: Config) -> int:
        return 1

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.pixtral import SelectedPixtral

        inner = model.model
        return SelectedPixtral(inner.vision_tower, inner.multi_modal_projector, model.config)


FAMILY = LlavaPixtral()
