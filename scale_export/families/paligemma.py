"""PaliGemma: SigLIP before a Gemma whose whole prompt sees itself (Beyer et al., 2024)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scale_export.compat.transformers import model_class, stand_in
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model, Processor, ProcessorClass
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._runtime import Runtime
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% endfor %}"
)
"""Pictures, then words: what the processor takes. It adds the rest (start token, line end) itself."""


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration`` over Gemma in Hugging Face transformers.

    Hugging Face counts a prompt's positions from 1; rotary attention sees differences only, and they count from 0
    here.
    """

    model_type = "paligemma"
    takes_text_alone = False
    prompt_sees_itself = True

    def load_processor(self, directory: Path) -> Processor:
        """Hugging Face's processor; checkpoints have no chat template, and get the plain one."""
        processor = super().load_processor(directory)
        if processor.chat_template is None:
            processor.chat_template = CHAT_TEMPLATE
        return processor

    def processor_class(self) -> ProcessorClass:
        return _asks_for_a_picture(model_class("paligemma.processing_paligemma.PaliGemmaProcessor"))

    def decoder_spec(self, config: Config) -> DecoderSpec:
        from scale_export.families._towers.siglip import check_tower

        check_tower(config)
        return text_spec(config.text_config, grouped_attention=True)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.siglip import SiglipFeatures

        return SiglipFeatures(model.model.vision_tower, model.model.multi_modal_projector)

    def attention_groups(self, inputs: Mapping[str, Array], runtime: Runtime) -> NDArray[np.int64]:
        """One group: the picture and the words after it."""
        return np.zeros(inputs["input_ids"].shape, np.int64)


@functools.cache
def _asks_for_a_picture(original: Any) -> ProcessorClass:
    """The processor's class, which says what is missing where a question comes without a picture."""

    def __call__(self: object, images: object = None, text: object = None, **settings: object) -> object:
        if images is None:
            raise UserError("PaliGemma only answers questions about pictures: give one with --image")
        return original.__call__(self, images, text, **settings)

    made: ProcessorClass = stand_in(original, __call__=__call__)
    return made


FAMILY = PaliGemma()
