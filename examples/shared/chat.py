"""Words, chat template and files that the example models share."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from scale_export.questions import load_questions

PAD, UNK, BOS, EOS, USER, ASSISTANT, IMAGE = SPECIAL = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "<image>",
)
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


def words_of(questions: str) -> set[str]:
    """Every word of a generated set: a thousand of its questions and answers hold them all."""
    asked = load_questions(questions, "train", limit=1024)
    return {word for q in asked for word in f"{q.prompt.replace('?', ' ?')} {q.answer}".split()}


def build_tokenizer(words: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """One token per word, lower case; ids beyond the words are filled with ``<unused…>``."""
    listed = [*SPECIAL, *sorted(words)]
    listed += [f"<unused{index}>" for index in range(vocab_size - len(listed))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(listed)}, unk_token=UNK))
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


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write what ``AutoModelForImageTextToText`` and ``AutoProcessor`` load; ``model`` becomes float16.

    ``processor`` should be new, since a tokenizer that has padded a batch would save that setting too.
    """
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
