"""Measuring a folded checkpoint: its tensors against the base's, and the model that loads from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scale_export.core import limits
from scale_export.core.huggingface import Model
from scale_export.core.records import Float32
from scale_export.device.selftest import MAX_NEW_TOKENS
from scale_export.model.asking import answer_questions
from scale_export.model.base import BaseModel, open_base
from scale_export.questions.question import Question

from .candidate import Candidate
from .cases import Case, model_logits, parity_prompts, parity_questions
from .legs import StorageLeg, largest_error
from .measure import Measured, Measurement, Steps
from .report import ParityReport
from .stored_tensors import exact_folds, tensors_leg
from .unproved import unproved


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """The Hugging Face model that loads from the folded checkpoint, in float32 arithmetic."""

    stored: BaseModel
    streamed: bool

    @functools.cached_property
    def model(self) -> Model:
        return self.stored.streamed_reference if self.streamed else self.stored.model

    @property
    def executed_by(self) -> str:
        return f"PyTorch {torch.__version__}, float32, on the weights as stored"

    def logits(self, cases: Sequence[Case]) -> list[Float32]:
        return model_logits(self.model, cases)

    def answer(self, question: Question) -> str:
        answers = answer_questions(
            self.model, self.stored.processor, [question], max_new_tokens=MAX_NEW_TOKENS
        )
        return answers[0].text


@dataclass(kw_only=True)
class CheckpointMeasurement(Measurement):
    """The legs of a folded checkpoint in ``directory``."""

    def run(self, eval_spec: str | None, limit: int | None) -> Measured:
        """As for graphs; with ``--parity files`` no model runs, and only what the files show is checked."""
        if self.parity != "files":
            return super().run(eval_spec, limit)
        base, coefficients = self.plan.base, self.plan.coefficients
        report = ParityReport(
            executed_by="no model ran; files were compared",
            reference="none: no model ran",
            not_checked=unproved(self.plan),
        )
        self._tensors(report)
        prompts = parity_prompts(
            text_alone=base.family.takes_text_alone, questions=parity_questions(coefficients)
        )
        self._preprocessing(report, [self._encoded(base.processor, prompt) for prompt in prompts])
        for name in ("fold", "storage", "task", "answer agreement"):
            report.skip(name, f"no model ran ({self._streamed})")
        return Measured(
            report=report, cases=(), shipped_logits=(), weaker_logits=(), scale_answers=None, answered=()
        )

    def _candidate(self) -> Candidate:
        return StoredModel(stored=open_base(str(self.directory)), streamed=self._streamed is not None)

    def _own_legs(
        self,
        report: ParityReport,
        cases: Sequence[Case],
        candidate: Candidate,
        portable: Sequence[Float32],
        shipped: list[Float32],
    ) -> Steps:
        """Every tensor against the base's, and what storage's rounding does to logits."""
        self._tensors(report)
        weights = self.plan.base.stored_weights
        folds = exact_folds(self.weights.folded, weights)
        dtypes = {weights.checkpoint.stored(name).dtype for name in folds}
        limit = limits.storage_relative(dtypes)
        error = largest_error([case.logits for case in cases], shipped, limit)
        report.storage = StorageLeg(error=error, cases=len(cases), dtypes=tuple(sorted(dtypes)))
        return [("storage", shipped)]

    def _tensors(self, report: ParityReport) -> None:
        with self.log.stage("tensors leg"):
            report.tensors = tensors_leg(self.weights.folded, self.plan.base.stored_weights, self.directory)
        for name in ("lowering", "quantization", "runtime"):
            report.skip(name, "a checkpoint holds no graph, and whoever takes it quantizes it")
