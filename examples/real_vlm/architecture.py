"""A LLaVA over a pretrained language model, its vision tower and projector new: processor and architecture."""

from __future__ import annotations

from pathlib import Path

import torch
from shared.chat import MEAN, STD
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from scale_export.questions.sets import gridworld

PATCH_SIZE = gridworld.TILE
IMAGE_SIZE = 3 * gridworld.TILE
IMAGE_TOKENS = 9
IMAGE = "<jupyter_script>"
"""The word that stands for the picture: one of the tokenizer's that plain English never holds."""
TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}" + IMAGE + "{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as the language model was trained on it, without its system prompt."""


def build_processor(language_model: Path) -> LlavaProcessor:
    """96 × 96 pixels scaled to [-1, 1], 9 image tokens, the language model's tokenizer, the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(language_model, padding_side="left")
    pictures = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )


def build_config(processor: LlavaProcessor, text: LlamaConfig) -> LlavaConfig:
    """SigLIP of 192 × 2 layers with one token per cell of the picture, before the given language model."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def build_model(language_model: Path, processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """The pretrained language model behind an untrained tower and projector, float32."""
    pretrained = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(processor, pretrained.config)).float()
    model.model.language_model.load_state_dict(pretrained.model.state_dict())
    model.tie_weights()
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=32,
        do_sample=False,
    )
    return model
