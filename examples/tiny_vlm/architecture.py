"""The tiny vision-language model before training: tokenizer, chat template, image processor, architecture."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from scale_export.datasets import load_questions

PAD, UNK, BOS, EOS, USER, ASSISTANT, IMAGE = SPECIAL = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<image>",
)
VOCAB_SIZE = 64
IMAGE_SIZE = 48
PATCH_SIZE = 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
MEAN = STD = (0.5, 0.5, 0.5)

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('the roles are user and assistant') }}{% endif %}"
    "{{ '<user> ' if message['role'] == 'user' else '<assistant> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def _words() -> set[str]:
    """Every word of the grid world: a thousand of its questions and answers hold them all."""
    questions = load_questions("gridworld", "train", limit=1024)
    return {word for q in questions for word in f"{q.prompt.replace('?', ' ?')} {q.answer}".split()}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, lower case; ids beyond the words are filled with ``<unused…>`` up to 64."""
    words = [*SPECIAL, *sorted(_words())]
    words += [f"<unused{index}>" for index in range(VOCAB_SIZE - len(words))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=512,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> LlavaProcessor:
    """48 × 48 pixels scaled to [-1, 1], nine image tokens, the chat template."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """CLIP of 96 × 2 layers; Llama of 128 × 4 layers with 8 query heads of 32 over 4 key/value heads."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
    )


def build_model(config: LlavaConfig, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model, float32: embeddings of standard deviation 0.5, matrices of 1 / √fan_in."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name and "patch" not in name:
                weight.normal_(std=0.5)
            elif weight.ndim > 1:
                weight.normal_(std=1 / sqrt(weight[0].numel()))
    return model


def save(model: LlavaForConditionalGeneration, out: Path) -> None:
    """Write what ``AutoModelForImageTextToText`` and ``AutoProcessor`` load; ``model`` becomes float16.

    The processor is built anew, since a tokenizer that has padded a batch would save that setting too.
    """
    processor = build_processor()
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=8,
        do_sample=False,
    )
    model.to(torch.float16).save_pretrained(out)
    processor.save_pretrained(out)
