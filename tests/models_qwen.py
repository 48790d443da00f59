"""Tiny random Qwen2-VL, Qwen2.5-VL and Qwen3-VL models, beside those of ``tests.models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from scale_export.families import load_family
from scale_export.families._processor import model_class
from tests.models import CHAT_TEMPLATE, IMAGE
from tests.models import _randomized as randomized
from tests.models import _tokenizer as make_tokenizer

PATCH, MERGE = 4, 2
TOKEN = PATCH * MERGE
"""Pixels of a token's side."""

LEAST_TOKENS, MOST_TOKENS = 4, 40

PLACES = {
    "image_token": IMAGE,
    "video_token": "<video>",
    "vision_start_token": "<vision>",
    "vision_end_token": "</vision>",
}
TEMPLATE = CHAT_TEMPLATE.replace(f"'{IMAGE}'", f"'<vision>{IMAGE}</vision>'")
"""Pictures between two words, as in published templates: Hugging Face tells neighbouring ones apart by them."""

VISION: dict[str, Any] = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
}
TEXT: dict[str, Any] = {
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny_qwen2_vl(
    text: str = "llama", *, directory: Path, **keywords: Any
) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL of three decoder layers, saved with its processor; ``text`` changes nothing."""
    hidden = 128
    return _tiny(
        "qwen2_vl",
        (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        {"embed_dim": 48, "hidden_size": hidden, "mlp_ratio": 2},
        {"hidden_size": hidden, "rope_parameters": _rope([4, 6, 6])},
        directory,
        **keywords,
    )


def tiny_qwen2_5_vl(
    text: str = "llama", *, directory: Path, **keywords: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """The same of Qwen2.5-VL, with windows of 3 × 3 tokens and whole pictures in its second block."""
    hidden = 128
    return _tiny(
        "qwen2_5_vl",
        (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
        {
            "hidden_size": 48,
            "out_hidden_size": hidden,
            "intermediate_size": 80,
            "window_size": 3 * TOKEN,
            "fullatt_block_indexes": [1],
        },
        {"hidden_size": hidden, "rope_parameters": _rope([4, 6, 6])},
        directory,
        **keywords,
    )


def tiny_qwen3_vl(
    text: str = "llama", *, directory: Path, **keywords: Any
) -> Qwen3VLForConditionalGeneration:
    """The same of Qwen3-VL, with a table of 5 × 5 positions and two depths for the decoder."""
    return _tiny(
        "qwen3_vl",
        (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
        {
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
        },
        {"hidden_size": 64, "head_dim": 32, "rope_parameters": _rope([6, 5, 5])},
        directory,
        **keywords,
    )


def _rope(section: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def _tiny(
    family: str,
    classes: tuple[Any, Any],
    vision: dict[str, Any],
    text: dict[str, Any],
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tie_word_embeddings: bool = False,
    **text_overrides: Any,
) -> Any:
    found = load_family(family)
    found.prepare_processor()
    tokenizer = _with_places(make_tokenizer())
    config_class, model_class_ = classes
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    config = config_class(
        vision_config=VISION | vision,
        text_config=TEXT | {"vocab_size": len(tokenizer)} | text | ids | text_overrides,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in PLACES.items()},
        tie_word_embeddings=tie_word_embeddings,
    )
    model = randomized(model_class_, config, dtype, seed)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(directory)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        size={"shortest_edge": LEAST_TOKENS * TOKEN**2, "longest_edge": MOST_TOKENS * TOKEN**2},
    )
    model_class(found.processor_class)(
        image_processor=pictures, tokenizer=tokenizer, chat_template=TEMPLATE
    ).save_pretrained(directory)
    return model


def _with_places(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the names that these processors ask for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        extra_special_tokens=PLACES,
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("pad", "bos", "eos")},
        padding_side="left",
        model_max_length=512,
    )
