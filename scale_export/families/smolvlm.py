"""SmolVLM 2: Idefics3's layout, with a processor that takes videos too (Marafioti et al., 2025)."""

from __future__ import annotations

from scale_export.compat.transformers import smolvlm_has_videos, smolvlm_without_videos
from scale_export.core.huggingface import ProcessorClass

from .idefics3 import Idefics3


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration`` in Hugging Face transformers; pictures, no videos."""

    model_type = "smolvlm"

    def processor_class(self) -> ProcessorClass:
        return super().processor_class() if smolvlm_has_videos() else smolvlm_without_videos()


FAMILY = SmolVLM()
