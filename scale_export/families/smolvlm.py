"""SmolVLM 2: Idefics3's layout, with a processor that takes videos too (Marafioti et al., 2025)."""

from __future__ import annotations

from .idefics3 import Idefics3


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration`` in Hugging Face transformers; pictures, no videos."""

    model_type = "smolvlm"

    def prepare_processor(self) -> None:
        """Leave out videos where torchvision or num2words is missing, without which it can't be built."""
        from transformers.models.smolvlm import processing_smolvlm as processing
        from transformers.utils import is_torchvision_available

        if is_torchvision_available() and processing.num2words:
            return
        processor = processing.SmolVLMProcessor
        processor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])
        image_seq_len, chat_template = processor.__init__.__defaults__[-2:]
        processor.__init__.__defaults__ = (None, image_seq_len, chat_template)  # video_processor=None
        processor.apply_chat_template = processing.ProcessorMixin.apply_chat_template
        processing.num2words = processing.num2words or str


FAMILY = SmolVLM()
