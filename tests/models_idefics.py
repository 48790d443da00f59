"""Tiny random SmolVLM and Idefics3 models, beside those of ``tests.models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from scale_export.families import load_family
from tests.models import CHAT_TEMPLATE
from tests.models import _randomized as randomized
from tests.models import _shared_config as shared_config
from tests.models import _tokenizer as make_tokenizer

TILE, PATCH, SCALE = 24, 4, 3
"""36 patches a tile, 4 rows after the pixel shuffle."""

LONGEST = 2 * TILE
"""Up to 2 × 2 tiles and the whole picture."""

KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "smolvlm": (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
    ),
    "idefics3": (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    ),
}
"""Model type → config, model, image processor without torchvision, processor."""


def tiny_smolvlm(
    text: str = "llama",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> SmolVLMForConditionalGeneration:
    """A SmolVLM of three decoder layers, saved to ``directory`` with its processor; in evaluation mode."""
    return _tiny("smolvlm", text, directory, dtype, seed, text_overrides)


def tiny_idefics3(
    text: str = "llama",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> Idefics3ForConditionalGeneration:
    """The same as an Idefics3."""
    return _tiny("idefics3", text, directory, dtype, seed, text_overrides)


def vision_config(*, image_size: int = TILE, patch_size: int = PATCH) -> dict[str, int]:
    """Of a tower of three layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def _tiny(
    kind: str, text: str, directory: Path, dtype: torch.dtype, seed: int, overrides: dict[str, Any]
) -> Any:
    config_class, model_class, pictures_class, processor_class = KINDS[kind]
    load_family(kind).prepare_processor()
    tokenizer = _with_places(make_tokenizer())
    shared = shared_config(tokenizer, text, overrides)
    config = config_class(
        vision_config=vision_config(),
        text_config=shared["text_config"],
        image_token_id=shared["image_token_index"],
        scale_factor=SCALE,
        tie_word_embeddings=shared["tie_word_embeddings"],
    )
    model = randomized(model_class, config, dtype, seed)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(tokenizer, key))
    model.save_pretrained(directory)
    pictures = pictures_class(size={"longest_edge": LONGEST}, max_image_size={"longest_edge": TILE})
    rows = (TILE // PATCH // SCALE) ** 2
    processor_class(
        image_processor=pictures, tokenizer=tokenizer, image_seq_len=rows, chat_template=CHAT_TEMPLATE
    ).save_pretrained(directory)
    return model


def _with_places(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the tokens that these processors put around pictures."""
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    around = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*around, *places]}, False)
    return tokenizer
