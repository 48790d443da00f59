"""Tiny random vision-language models on disk, complete with processor, for tests to open offline.

Weights are random but far from degenerate: norms differ from one, biases from zero, so that a dropped or
swapped weight shows. Query width (4 heads of 32) differs from the hidden size (64), so that a transposed
``o_proj`` shows too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MinistralConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

PAD, BOS, EOS, USER, ASSISTANT, IMAGE = SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<image>")
TEXT_CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "ministral": MinistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
TEXT_MODELS = tuple(TEXT_CONFIGS)

IMAGE_SIZE, PATCH_SIZE, VOCAB_SIZE = 48, 16, 320
GRID_PINPOINTS = [[48, 96], [96, 48], [96, 96]]

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
CORPUS = (
    "is the red circle left of the blue square ? yes no",
    "what is above the green star ? the small yellow triangle is below it",
    "how many things are in the picture ? one two three four",
)


def tiny_llava(
    text: str = "llama",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> LlavaForConditionalGeneration:
    """A LLaVA of three decoder layers, saved to ``directory`` with its processor; in evaluation mode."""
    tokenizer = _tokenizer()
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    config = LlavaConfig(
        **_shared_config(tokenizer, text, text_overrides), image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2
    )
    model = _randomized(LlavaForConditionalGeneration, config, dtype, seed)
    return _saved(model, LlavaProcessor, pictures, tokenizer, directory)


def tiny_llava_next(
    text: str = "llama",
    *,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **text_overrides: Any,
) -> LlavaNextForConditionalGeneration:
    """The same with LLaVA-NeXT's tiles: up to 2 × 2 beside the overview."""
    tokenizer = _tokenizer()
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_grid_pinpoints=GRID_PINPOINTS,
    )
    config = LlavaNextConfig(
        **_shared_config(tokenizer, text, text_overrides), image_grid_pinpoints=GRID_PINPOINTS
    )
    model = _randomized(LlavaNextForConditionalGeneration, config, dtype, seed)
    return _saved(model, LlavaNextProcessor, pictures, tokenizer, directory)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has ids and any ids have a text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        padding_side="left",
        model_max_length=512,
    )


def _shared_config(
    tokenizer: PreTrainedTokenizerFast, text: str, overrides: dict[str, Any]
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    } | overrides
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    return {
        "vision_config": vision,
        "text_config": TEXT_CONFIGS[text](**fields),
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": fields["tie_word_embeddings"],
    }


def _randomized(kind: Any, config: Any, dtype: torch.dtype, seed: int) -> Any:
    """Matrices of standard deviation 1 / √fan_in, embeddings of 1/4, norms around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    model = kind(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "embed" in name and weight.ndim == 2:
            weight.copy_(0.25 * noise)
        elif weight.ndim >= 2:
            weight.copy_(noise * weight[0].numel() ** -0.5)
        elif name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        else:
            weight.copy_(0.1 * noise)
    model.tie_weights()
    for (
        weight
    ) in model.parameters():  # not model.to: rotary frequencies stay float32, as from_pretrained has them
        weight.data = weight.data.to(dtype)
    return model


def _saved(
    model: Any, processor: Any, pictures: Any, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> Any:
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.generation_config, key, getattr(tokenizer, key))
    model.save_pretrained(directory)
    processor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)
    return model
