"""Measuring emitted graphs against the PyTorch ScAle model: every leg, in the order of the chain."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .backends import Engine, Scalars
from .backends.reference import ReferenceEngine
from .calibration import plan_statistics
from .datasets import Question, dataset_names, load_questions
from .folding import FoldedDecoder, fold
from .generation import Generator
from .parity import (
    ParityReport,
    fold_leg,
    lowering_leg,
    path_logits,
    preprocessing_leg,
    quantization_leg,
    runtime_leg,
)
from .plan import Plan
from .progress import WorkLog
from .prompts import encode_messages, end_token_ids, user_message
from .quantize import QuantizedWeights, load_quantizer
from .records import Coefficients, Float32, Precision
from .reference import Case, parity_prompts, reference_cases
from .runtime import Responder
from .task import MAX_NEW_TOKENS, Answered, agreement, ask_all, task_leg
from .vision import VisionTower


class Backend(Protocol):
    """What a backend's ``backend.py`` offers the pipeline."""

    def check(self, plan: Plan) -> None:
        """Refuse what this runtime can't run faithfully; raises UserError."""
        ...

    def emit(
        self,
        folded: FoldedDecoder,
        vision: VisionTower,
        plan: Plan,
        directory: Path,
        *,
        precision: Precision,
        vision_precision: Precision,
    ) -> dict[str, str]: ...

    def emit_side_files(self, folded: FoldedDecoder, directory: Path) -> None: ...

    def open_engine(self, graphs: Mapping[str, Path], plan: Plan, *, strict: bool = False) -> Engine: ...

    def code_hashes(self, graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]: ...

    def not_checked(self) -> Sequence[str]:
        """What running them here can't prove of the device, a sentence each."""
        ...

    @property
    def LIBRARIES(self) -> Sequence[str]:
        """The distributions that shape the graphs."""
        ...


def load_backend(name: str) -> Backend:
    """The backend of that name."""
    backend: Backend = importlib.import_module(f"scale_export.backends.{name}.backend")
    return backend


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The report, and what the package and the report page are made of beside it."""

    report: ParityReport
    cases: tuple[Case, ...]
    shipped_logits: tuple[Float32, ...]
    scale_answers: tuple[str, ...]
    answered: tuple[Answered, ...]


@dataclass(kw_only=True)
class Measurement:
    """One measurement of ``graphs`` (role → file) beside the processor files in ``directory``.

    ``scratch`` is a folder for graphs that are emitted to compare with, the system's own where None.
    ``statistics_sha256`` is the hash of the calibration statistics that the package was made with, where it records
    one: with others, integer codes can't be told from moved ones.
    """

    plan: Plan
    directory: Path
    graphs: Mapping[str, Path]
    log: WorkLog
    scratch: Path | None = None
    statistics_sha256: str | None = None

    def run(self, eval_spec: str | None, limit: int | None) -> Measured:
        """Every leg that applies to the plan; those that don't are named in the report."""
        plan, base = self.plan, self.plan.base
        backend = load_backend(plan.target.backend)
        engine = backend.open_engine(self.graphs, plan)
        report = ParityReport(executed_by=engine.executed_by, not_checked=[*backend.not_checked()])
        with self.log.stage("PyTorch ScAle reference"):
            cases = reference_cases(base.model, base.processor, plan.coefficients, parity_prompts())
        folded = fold(base.weights, plan.coefficients, plan.fold)
        with self.log.stage("fold leg"):
            portable = path_logits(self._generator(self._reference(folded)), cases)
            report.legs["fold"] = fold_leg(cases, portable)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=".parity-") as scratch:
            shipped = self._graph_legs(report, folded, cases, portable, Path(scratch))
        with self.log.stage("preprocessing leg"):
            processor = base.family.load_processor(self.directory)
            inputs = [
                encode_messages(processor, [user_message(c.prompt.images, c.prompt.text)]) for c in cases
            ]
            levels = levels_per_unit(base.processor)
            report.legs["preprocessing"] = preprocessing_leg([c.inputs for c in cases], inputs, levels)
        responder = Responder(
            processor=processor,
            generator=self._generator(engine),
            eos_token_ids=end_token_ids(processor, self.directory),
        )
        if plan.target.max_memory_bytes is not None:
            report.skip("memory", "a running package's memory is measured by bench, on the device")
        scale_answers = self._agreement(report, responder, cases)
        answered = self._task(report, responder, eval_spec, limit)
        return Measured(
            report=report,
            cases=tuple(cases),
            shipped_logits=tuple(shipped),
            scale_answers=scale_answers,
            answered=answered,
        )

    def _generator(self, engine: Engine) -> Generator:
        base = self.plan.base
        return Generator(
            engine=engine,
            family=base.family,
            fold=self.plan.fold,
            image_token_id=base.family.image_token_id(base.config),
            runtime_config=base.family.runtime_config(base.config),
        )

    def _reference(self, folded: FoldedDecoder) -> ReferenceEngine:
        base = self.plan.base
        attn, mlp = folded.dense()
        return ReferenceEngine(
            folded.weights,
            scaled=folded.scaled,
            vision=base.family.vision_module(base.model),
            image_token_id=base.family.image_token_id(base.config),
            gate=(folded.coefficients.scope, Scalars(attn=attn, mlp=mlp)) if folded.gate else None,
        )

    def _graph_legs(
        self,
        report: ParityReport,
        folded: FoldedDecoder,
        cases: Sequence[Case],
        portable: Sequence[Float32],
        scratch: Path,
    ) -> list[Float32]:
        """The lowering, quantization and runtime legs; returns the logits of the package as it runs."""
        plan = self.plan
        shipped = self._logits(self.graphs, cases, "shipped graphs")
        if not plan.quantized:
            report.legs["lowering"] = lowering_leg(portable, shipped, plan.precision)
            report.skip("quantization", f"weights are {plan.precision}, nothing is quantized")
            report.skip(
                "runtime", f"{plan.precision} graphs have no faster, looser kernels here to compare with"
            )
            return shipped
        backend = load_backend(plan.target.backend)
        with self.log.stage("unquantized graphs"):
            names = backend.emit(
                folded,
                plan.base.family.vision_module(plan.base.model),
                plan,
                scratch,
                precision="float32",
                vision_precision="float32",
            )
        plain_graphs = {role: scratch / name for role, name in names.items()}
        plain = self._logits(plain_graphs, cases, "lowering leg", strict=True)
        report.legs["lowering"] = lowering_leg(portable, plain, "float32")
        strict = self._logits(self.graphs, cases, "quantization leg", strict=True)
        limits = plan.target.parity.of(plan.precision)
        codes = self._codes_kept(report, folded)
        report.legs["quantization"] = quantization_leg(plain, strict, limits, codes)
        report.legs["runtime"] = runtime_leg(strict, shipped, limits)
        return shipped

    def _logits(
        self, graphs: Mapping[str, Path], cases: Sequence[Case], stage: str, *, strict: bool = False
    ) -> list[Float32]:
        with self.log.stage(stage):
            engine = load_backend(self.plan.target.backend).open_engine(graphs, self.plan, strict=strict)
            return path_logits(self._generator(engine), cases)

    def _codes_kept(self, report: ParityReport, folded: FoldedDecoder) -> dict[str, bool | None]:
        """Matrix → whether the package's codes are those of the unfolded base, for every folded matrix."""
        plan, names = self.plan, folded.folded_matrices
        if not names or plan.quantizer is None:
            return {}
        statistics = plan_statistics(plan, self.log)
        if statistics and self.statistics_sha256 not in (None, statistics.sha256):
            report.skip(
                "integer codes", "the calibration statistics collected here are not those of the export"
            )
            return {}
        base = QuantizedWeights.prepared(
            plan.base.weights,
            load_quantizer(plan.quantizer),
            bits=plan.bits,
            block_size=plan.block_size,
            statistics=statistics,
            other_bits=plan.other_bits,
        )
        found = load_backend(plan.target.backend).code_hashes(self.graphs, names)
        return {name: found[name] == base.block(name).codes_sha256 for name in names}

    def _agreement(
        self, report: ParityReport, responder: Responder, cases: Sequence[Case]
    ) -> tuple[str, ...]:
        """Answers on the parity prompts: always measured, whatever the model."""
        questions = [
            Question(
                id=c.prompt.name,
                instance=c.prompt.name,
                image=c.prompt.images[0] if c.prompt.images else None,
                prompt=c.prompt.text,
                answer="",
                kind="other",
                topic="parity",
            )
            for c in cases
        ]
        answered = self._ask(responder, questions, "answer agreement")
        report.answer_agreement = agreement(answered)
        return tuple(a.scale for a in answered)

    def _task(
        self, report: ParityReport, responder: Responder, eval_spec: str | None, limit: int | None
    ) -> tuple[Answered, ...]:
        if eval_spec is None:
            report.skip("task", "no evaluation set was named (--eval gridworld, for one)")
            return ()
        questions = load_questions(eval_spec, "test", limit=limit)
        answered = self._ask(responder, questions, "task leg")
        limits = self.plan.target.parity.of(self.plan.precision)
        report.legs["task"] = task_leg(eval_spec, answered, limits)
        return tuple(answered)

    def _ask(self, responder: Responder, questions: Sequence[Question], stage: str) -> list[Answered]:
        base = self.plan.base

        def ask(question: Question) -> str:
            images = [] if question.image is None else [question.image]
            return responder.answer(images, question.prompt, max_new_tokens=MAX_NEW_TOKENS)

        with self.log.stage(stage):
            return ask_all(
                base.model, base.processor, self.plan.coefficients, ask, questions, self.log.advance
            )


def evaluation_set(asked: str, coefficients: Coefficients) -> str | None:
    """The question set of the task leg, or None.

    ``auto`` is the set that the coefficients were trained on, if it is one of ours; ``none`` is no set.

    Raises:
        UserError: a set that can't be loaded.
    """
    if asked == "none":
        return None
    if asked == "auto":
        trained_on = str(coefficients.training.get("data", ""))
        return trained_on if trained_on.partition(":")[0] in dataset_names() else None
    load_questions(asked, "test", limit=1)
    return asked


def levels_per_unit(processor: Any) -> float:
    """How many 8-bit levels one unit of ``pixel_values`` is, at the most over channels."""
    images = processor.image_processor
    std = max(images.image_std) if images.do_normalize else 1.0
    return std / images.rescale_factor if images.do_rescale else std
