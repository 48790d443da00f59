"""How many questions the model answers with exactly the right words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from scale_export.questions.question import Question

BATCH = 256


def _chat(question: Question) -> list[dict[str, object]]:
    return [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]},
        {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
    ]


@torch.no_grad()
def _right(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: Sequence[Question]
) -> list[bool]:
    """Whether greedy decoding gives each answer: every next token, the end included, is the likeliest."""
    texts = processor.apply_chat_template([_chat(q) for q in questions])
    inputs = processor(images=[q.image for q in questions], text=texts, padding=True, return_tensors="pt")
    guesses = model(**inputs).logits[:, :-1].argmax(-1)
    wanted = inputs["input_ids"][:, 1:]
    opening = processor.tokenizer.convert_tokens_to_ids("<assistant>")
    in_answer = (inputs["input_ids"] == opening).cumsum(-1)[:, :-1] > 0
    return [bool(value) for value in ((guesses == wanted) | ~in_answer).all(-1)]


def accuracy(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: Sequence[Question]
) -> Mapping[str, float]:
    """The share of right answers per kind, then per topic."""
    right = [
        value
        for start in range(0, len(questions), BATCH)
        for value in _right(model, processor, questions[start : start + BATCH])
    ]
    topics = sorted({(q.kind == "other", q.topic) for q in questions})
    scores: dict[str, list[bool]] = {name: [] for name in ("spatial", "other", *(t for _, t in topics))}
    for question, value in zip(questions, right, strict=True):
        scores[question.kind].append(value)
        scores[question.topic].append(value)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def table(scores: Mapping[str, float]) -> str:
    """One line: ``spatial .412, other .985, left_right …``."""
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
