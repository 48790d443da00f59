"""Prompts and greedy answers of a Hugging Face model: how every part of the project asks a question.

The prompt is the processor's own chat template around one picture (where there is one) and the question.
Answers are greedy, by the rules of the model's generation config. ScAle acts through hooks: attach it around the call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model, Processor, Tokenizer
from scale_export.core.records import Float32
from scale_export.core.watch import PROCESSOR, bounded
from scale_export.device.prompts import (
    LABELS,
    assistant_message,
    conversation,
    narrow_pictures_refused,
    without_placeholders,
)
from scale_export.device.rules import GenerationRules, rules_of
from scale_export.questions.question import Question

GREEDY: Mapping[str, object] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_time": None,
    "use_mtp": None,
    "is_assistant": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
}
"""What ``generate`` is told in place of those keys of a generation config that ask for another search or another end:
each is among ``rules.IGNORED``, and no token of a greedy answer is another for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered to one question.

    Attributes:
        text: the decoded answer without special tokens, stripped.
        token_ids: the generated tokens, the end token included where it came.
        margins: float32, one per token: the best logit minus the second best, after the rules.
        peaks: float32, one per token: the largest absolute logit before them, the yardstick of a near-tie.
    """

    text: str
    token_ids: tuple[int, ...]
    margins: Float32
    peaks: Float32


def encode_prompts(processor: Processor, questions: Sequence[Question]) -> dict[str, Tensor]:
    """The processor's inputs for a batch, padded on the left, generation prompt included.

    Returns ``input_ids`` and ``attention_mask`` ``[B, T]`` int64, ``pixel_values`` and whatever else the
    family takes.

    Raises:
        UserError: the processor has no chat template, a batch needs padding and no pad token is set, or as
            ``without_placeholders`` and ``narrow_pictures_refused``.
    """
    if getattr(processor, "chat_template", None) is None:
        raise UserError("the model's processor has no chat template to ask with; add a chat_template.jinja")
    if len(questions) > 1 and processor.tokenizer.pad_token is None:
        raise UserError("the model's tokenizer has no pad token to make batches with; set one (any does)")
    asked = [without_placeholders(processor, conversation(question)) for question in questions]
    with (
        narrow_pictures_refused([message for messages in asked for message in messages]),
        bounded("what this model's processor makes of the questions", PROCESSOR),
    ):
        inputs = processor.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(questions) > 1, "padding_side": "left"},
        )
    return {name: value for name, value in inputs.items() if name != LABELS}


def to_model(inputs: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The inputs on the model's device, floating ones in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def rules_of_model(model: Model, processor: Processor) -> GenerationRules:
    """By which a loaded model's tokens are chosen, of its own generation config; raises UserError as ``rules_of``."""
    return rules_of(model.generation_config.to_dict(), processor.tokenizer, "the model's generation config")


@torch.no_grad()
def answer_questions(
    model: Model,
    processor: Processor,
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Greedy answers in the questions' order, in left-padded batches; one by one where a rule would count the padding.

    Transformers' own generation follows the rules of the model's generation config.

    ``progress`` is told how many of how many are done after each batch. The model should be in ``eval`` mode.

    Raises:
        UserError: as ``encode_prompts`` and ``rules_of_model``.
    """
    rules = rules_of_model(model, processor)
    ends = rules.end_tokens
    batch_size = 1 if rules.counts_padding else batch_size
    pad = processor.tokenizer.pad_token_id
    answers: list[Answer] = []
    for start in range(0, len(questions), batch_size):
        inputs = to_model(encode_prompts(processor, questions[start : start + batch_size]), model)
        output = model.generate(
            **inputs,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            eos_token_id=[*ends],
            pad_token_id=ends[0] if pad is None else pad,
            output_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
        peaks = torch.stack([step.abs().amax(-1) for step in output.logits], dim=1)
        best = torch.stack([step.topk(2, dim=-1).values for step in output.scores], dim=1)
        rows = zip(tokens.tolist(), best.float(), peaks.float(), strict=True)
        answers += [_answer(*row, ends, processor.tokenizer) for row in rows]
        if progress:
            progress(len(answers), len(questions))
    return answers


def _answer(
    tokens: list[int], best: Tensor, peaks: Tensor, ends: Collection[int], tokenizer: Tokenizer
) -> Answer:
    """One row of a batch, cut after its first end token; ``best [steps, 2]`` and ``peaks [steps]`` float32."""
    steps = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return Answer(
        text=tokenizer.decode(tokens[:steps], skip_special_tokens=True).strip(),
        token_ids=tuple(tokens[:steps]),
        margins=(best[:steps, 0] - best[:steps, 1]).cpu().numpy().astype(np.float32),
        peaks=peaks[:steps].cpu().numpy().astype(np.float32),
    )


def target_ids(processor: Processor, question: Question, ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens that should follow the prompt: the answer as the chat template writes it, then an end token.

    Raises:
        UserError: the answer has no tokens.
    """
    tokenizer = processor.tokenizer
    asked = conversation(question)
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    whole = processor.apply_chat_template([*asked, assistant_message(question.answer)]).rstrip()
    before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, whole))
    ids = after[len(before) :]
    if after[: len(before)] != before:
        ids = tokenizer(question.answer, add_special_tokens=False).input_ids
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    if stop == 0:
        raise UserError(
            f"the answer {question.answer!r} of question {question.id!r} has no tokens; correct it"
        )
    return (*ids[:stop], ids[stop] if stop < len(ids) else ends[0])
