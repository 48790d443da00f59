"""A tiny random Mistral 3 model, beside those of ``tests.models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessorPil,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)

from scale_export.families.mistral3 import Mistral3
from tests.models import CHAT_TEMPLATE, IMAGE
from tests.models import _randomized as randomized
from tests.models import _shared_config as shared_config
from tests.models import _tokenizer as make_tokenizer

PATCH, MERGE, LONGEST = 4, 2, 48
"""Up to 6 × 6 tokens."""

BREAK, END = "<break>", "<end>"


def tiny_mistral3(
    text: str = "mistral",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layer: int = -1,
    **text_overrides: Any,
) -> Mistral3ForConditionalGeneration:
    """A Mistral 3 of three decoder layers, saved to ``directory`` with its processor; in evaluation mode."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [BREAK, END]}, False)
    fields = shared_config(tokenizer, text, text_overrides)
    vision = PixtralVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=2,
        head_dim=24,
        patch_size=PATCH,
        image_size=LONGEST,
        hidden_act="silu",
    )
    config = Mistral3Config(
        vision_config=vision,
        text_config=fields["text_config"],
        image_token_index=fields["image_token_index"],
        vision_feature_layer=layer,
        spatial_merge_size=MERGE,
        tie_word_embeddings=fields["tie_word_embeddings"],
    )
    model = randomized(Mistral3ForConditionalGeneration, config, dtype, seed)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(tokenizer, key))
    model.save_pretrained(directory)
    processor(tokenizer).save_pretrained(directory)
    return model


def processor(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Pixtral's, of a tokenizer that has the words beside pictures."""
    return Mistral3.without_torchvision()(
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": LONGEST}, patch_size={"height": PATCH, "width": PATCH}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        image_break_token=BREAK,
        image_end_token=END,
    )
