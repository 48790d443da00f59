"""LLaVA 1.5: one CLIP-like tower, a two-layer projector, one fixed picture size (Liu et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.huggingface import Config, Model
from scale_export.core.records import DecoderSpec

from ._family import Family
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Llava(Family):
    """``LlavaForConditionalGeneration`` in Hugging Face transformers."""

    model_type = "llava"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        return text_spec(config.text_config)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.tower import SelectedFeatures

        return SelectedFeatures(model.model.vision_tower, model.model.multi_modal_projector, model.config)


FAMILY = Llava()
