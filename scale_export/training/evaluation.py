"""Greedy accuracy by kind of question, with Wilson intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scale_export.core.huggingface import Model, Processor
from scale_export.core.intervals import wilson
from scale_export.model.asking import answer_questions
from scale_export.questions.question import Kind, Question
from scale_export.questions.scoring import is_right

from .loop import KINDS
from .options import ProgressCallback

MAX_NEW_TOKENS = 8
"""How long an answer may grow at least; longer reference answers get their own length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Right answers among ``total``."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        found = wilson(self.correct, self.total)
        assert found is not None, "an accuracy is made of at least one question"
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the final table.

    Attributes:
        parameters: how many numbers were trained.
        steps: optimizer steps that ran, None for the base model; ``best_step`` is the one that was kept.
        seconds: wall time of training, None for the base model.
    """

    name: str
    parameters: int
    accuracy: Mapping[Kind, Accuracy]
    steps: int | None
    best_step: int | None
    seconds: float | None


def measure_accuracy(
    model: Model,
    processor: Processor,
    questions: Sequence[Question],
    *,
    progress: ProgressCallback,
    stage: str,
) -> dict[Kind, Accuracy]:
    """Right greedy answers by strict scoring, for each kind that occurs."""
    longest = max(len(processor.tokenizer(q.answer, add_special_tokens=False).input_ids) for q in questions)
    answers = answer_questions(
        model,
        processor,
        questions,
        max_new_tokens=max(MAX_NEW_TOKENS, longest + 1),
        progress=lambda done, total: progress(stage, done, total),
    )
    table: dict[Kind, Accuracy] = {}
    for kind in KINDS:
        right = [is_right(a.text, q) for a, q in zip(answers, questions, strict=True) if q.kind == kind]
        if right:
            table[kind] = Accuracy(correct=right.count(True), total=len(right))
    return table
