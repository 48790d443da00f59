"""DeepSeek-VL: SigLIP on a square that holds the whole picture, two matrices, Llama (Lu et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.huggingface import Config, Model
from scale_export.core.records import DecoderSpec

from ._family import Family
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class DeepseekVL(Family):
    """``DeepseekVLForConditionalGeneration`` in Hugging Face transformers.

    The processor shrinks a picture to the square's side and fills up what is left with the mean colour.
    """

    model_type = "deepseek_vl"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        from scale_export.families._towers.siglip import check_tower

        check_tower(config)
        return text_spec(config.text_config)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.siglip import SiglipFeatures

        return SiglipFeatures(model.model.vision_model, model.model.aligner)


FAMILY = DeepseekVL()
