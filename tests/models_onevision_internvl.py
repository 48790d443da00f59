"""Tiny random LLaVA-OneVision and InternVL models, beside those of ``tests.models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from scale_export.families import load_family
from tests.models import CHAT_TEMPLATE, GRID_PINPOINTS, IMAGE, IMAGE_SIZE, PATCH_SIZE
from tests.models import _randomized as randomized
from tests.models import _shared_config as shared_config
from tests.models import _tokenizer as make_tokenizer

MAX_TILES = "anyres_max_2"
"""So that a 2 × 2 grid is shrunk and 1 × 2 is not."""

TILE, PATCH, MOST_TILES = 32, 8, 4
"""InternVL's: 16 patches a tile, 4 rows after the pixel shuffle, up to 4 tiles and the whole picture."""

SIDES = {"start_image_token": "<img>", "end_image_token": "</img>"}


def tiny_llava_onevision(
    text: str = "qwen2",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> LlavaOnevisionForConditionalGeneration:
    """A LLaVA-OneVision of three decoder layers with a SigLIP tower; grids as ``tests.models`` has them."""
    load_family("llava_onevision").prepare_processor()
    tokenizer = make_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        **shared_config(tokenizer, text, text_overrides) | {"vision_config": vision},
        image_grid_pinpoints=GRID_PINPOINTS,
        vision_aspect_ratio=MAX_TILES,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=GRID_PINPOINTS
        ),
        tokenizer=tokenizer,
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=MAX_TILES,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    return _saved(
        randomized(LlavaOnevisionForConditionalGeneration, config, dtype, seed), processor, directory
    )


def tiny_internvl(
    text: str = "qwen2",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layer: int = -1,
    vision: dict[str, Any] | None = None,
    **text_overrides: Any,
) -> InternVLForConditionalGeneration:
    """An InternVL of three decoder layers; its layer scales are near one, its position embeddings not small."""
    load_family("internvl").prepare_processor()
    tokenizer = _with_sides(make_tokenizer())
    fields = shared_config(tokenizer, text, text_overrides)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH, PATCH],
    }
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**shape | (vision or {})),
        text_config=fields["text_config"],
        image_token_id=fields["image_token_index"],
        image_seq_length=(TILE // PATCH // 2) ** 2,
        vision_feature_layer=layer,
        pad_token_id=fields["pad_token_id"],
        tie_word_embeddings=fields["tie_word_embeddings"],
    )
    model = randomized(InternVLForConditionalGeneration, config, dtype, seed)
    for name, weight in model.model.vision_tower.named_parameters():
        if "lambda" in name:
            weight.add_(1)
        elif name.endswith("position_embeddings"):
            weight.mul_(8)
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=MOST_TILES
        ),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=CHAT_TEMPLATE,
    )
    return _saved(model, processor, directory)


def _with_sides(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the names that InternVL's processor asks for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        extra_special_tokens=SIDES | {"context_image_token": IMAGE, "video_token": "<video>"},
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("pad", "bos", "eos")},
        padding_side="left",
        model_max_length=512,
    )


def _saved(model: Any, processor: Any, directory: Path) -> Any:
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(processor.tokenizer, key))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model
