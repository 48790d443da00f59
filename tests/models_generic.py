"""Tiny random models that have no family file, for the generic route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.models import IMAGE_SIZE, PATCH_SIZE
from tests.models import _randomized as randomized
from tests.models import _saved as saved
from tests.models import _shared_config as shared_config
from tests.models import _tokenizer as make_tokenizer


def tiny_vipllava(
    text: str = "llama",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> VipLlavaForConditionalGeneration:
    """A ViP-LLaVA of three decoder layers: three of its tower's layers, a norm, two matrices."""
    tokenizer = make_tokenizer()
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    config = VipLlavaConfig(
        **shared_config(tokenizer, text, text_overrides),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=[-2, -3, 1],
    )
    model = randomized(VipLlavaForConditionalGeneration, config, dtype, seed)
    saved(model, LlavaProcessor, pictures, tokenizer, directory)
    return model  # type: ignore[no-any-return]
