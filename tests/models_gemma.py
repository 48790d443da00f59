"""Tiny random Gemma 3 and PaliGemma models, beside those of ``tests.models``.

Four layers, three of them local in Gemma 3, whose window is shorter than a picture; norms store w of 1 + w.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.models import CHAT_TEMPLATE, IMAGE
from tests.models import _randomized as randomized
from tests.models import _shared_config as shared_config
from tests.models import _tokenizer as make_tokenizer

SIDE = 48
TOKENS_PER_SIDE, POOLED = 3, 2
"""Nine tokens a picture, in Gemma 3 each from 2 × 2 patches."""

WINDOW = 6
"""Of Gemma 3's local layers: fewer tokens than a picture has."""

LINEAR_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
"""Global layers stretched as in Gemma 3's larger models, local ones not; far apart on short prompts too."""

PALIGEMMA_TEMPLATE = CHAT_TEMPLATE.removeprefix("{{ '<s>' }}")
"""The processor puts the start token itself, behind the pictures."""


def tiny_gemma3(
    text: str = "own",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> Gemma3ForConditionalGeneration:
    """A Gemma 3, saved to ``directory`` with its processor; in evaluation mode. ``text`` has one value."""
    tokenizer = _with_image_tokens(make_tokenizer(), boi_token="<start_of_image>", eoi_token="<end_of_image>")
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**_text_fields(tokenizer, _gemma3_fields() | overrides)),
        vision_config=_vision_config(SIDE // (TOKENS_PER_SIDE * POOLED)),
        mm_tokens_per_image=TOKENS_PER_SIDE**2,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        tie_word_embeddings=True,
    )
    model = _centred(randomized(Gemma3ForConditionalGeneration, config, dtype, seed))
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    template = CHAT_TEMPLATE.replace("'<image>'", "'<start_of_image>'")
    processor = Gemma3Processor(
        pictures, tokenizer, chat_template=template, image_seq_length=TOKENS_PER_SIDE**2
    )
    return _saved(model, processor, tokenizer, directory)


def tiny_paligemma(
    text: str = "own",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> PaliGemmaForConditionalGeneration:
    """A PaliGemma over Gemma, the same way."""
    tokenizer = _with_image_tokens(make_tokenizer())
    pictures = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_seq_length=TOKENS_PER_SIDE**2
    )
    processor = PaliGemmaProcessor(pictures, tokenizer, chat_template=PALIGEMMA_TEMPLATE)
    fields = _text_fields(tokenizer, overrides)
    config = PaliGemmaConfig(
        text_config=GemmaConfig(**fields),
        vision_config=_vision_config(SIDE // TOKENS_PER_SIDE),
        image_token_index=tokenizer.image_token_id,
        vocab_size=fields["vocab_size"],
        projection_dim=fields["hidden_size"],
        hidden_size=fields["hidden_size"],
        tie_word_embeddings=True,
    )
    model = _centred(randomized(PaliGemmaForConditionalGeneration, config, dtype, seed))
    return _saved(model, processor, tokenizer, directory)


def _gemma3_fields() -> dict[str, Any]:
    return {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "rope_parameters": LINEAR_ROPE,
    }


def _text_fields(tokenizer: PreTrainedTokenizerFast, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of every tiny text model, four layers, embeddings tied."""
    shared = shared_config(tokenizer, "llama", {})["text_config"]
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    )
    fields = {name: getattr(shared, name) for name in names}
    return (
        fields
        | {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "tie_word_embeddings": True}
        | overrides
    )


def _vision_config(patch_size: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=patch_size,
        vision_use_head=False,
    )


def _centred(model: Any) -> Any:
    """Norms that multiply by 1 + w, drawn around one in ``randomized``, around zero in their stored form."""
    for name, module in model.named_modules():
        if "RMSNorm" in type(module).__name__:
            module.weight.data -= 1
            assert name, "a norm is a part of the model"
    return model


def _with_image_tokens(tokenizer: PreTrainedTokenizerFast, **more: str) -> PreTrainedTokenizerFast:
    """The tokenizer with attributes for its image tokens, as these processors ask for them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        extra_special_tokens={"image_token": IMAGE, **more},
        padding_side="left",
        model_max_length=tokenizer.model_max_length,
    )


def _saved(model: Any, processor: Any, tokenizer: PreTrainedTokenizerFast, directory: Path) -> Any:
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(tokenizer, key))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model
