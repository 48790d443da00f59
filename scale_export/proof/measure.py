"""Measuring emitted graphs against the PyTorch ScAle model: every leg, in the order of the chain."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scale_export.backends.interface import Emission, graph_backend, open_planned
from scale_export.core.defaults import PARITY, SCORING
from scale_export.core.huggingface import Processor
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.core.words import FloatType, ParityMode, Scoring
from scale_export.device.engine import Engine, Scalars
from scale_export.device.generation import Generator, Inputs
from scale_export.device.package import Responder
from scale_export.device.pixels import levels_per_unit
from scale_export.device.prompts import encode_messages, user_message
from scale_export.device.rules import read_rules
from scale_export.device.selftest import STRENGTHS
from scale_export.model.arithmetic import TorchKernels
from scale_export.model.folding import FoldedDecoder
from scale_export.model.independent import READER
from scale_export.model.streaming import StreamedKernels
from scale_export.plan.portable import generator_of, reference_engine
from scale_export.plan.record import Plan
from scale_export.plan.reference_choice import must_stream
from scale_export.plan.weights import PlannedWeights, unfolded
from scale_export.questions import load_questions, public_name
from scale_export.questions.question import Question, digest

from .answers import Answered, ask_all, parity_answers
from .attribution import attribution
from .candidate import Candidate, GraphCandidate, prepared_logits
from .cases import (
    FORCED_STEPS,
    Case,
    Prompt,
    few_prompts,
    parity_cases,
    parity_questions,
    reference_cases,
)
from .image_facts import facts_error
from .judging import Side, Sides, judge
from .last_slots import end_of_context
from .legs import fold_leg, lowering_leg
from .paths import ALONE, Room, path_logits
from .preprocessing import preprocessing_leg
from .report import LOADED, ParityReport
from .shipped_values import Grafted, as_stored, front_errors
from .shrinking import Shrinking, due_inputs, large_prompts, shrinking
from .task import task_leg
from .unproved import unproved


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The report, and what the package and the report page are made of beside it; no answers where none were asked.

    ``weaker_logits`` are the shipped files' on the first case at each of the self-test's lower strengths; none where
    scalars are no inputs.
    """

    report: ParityReport
    cases: tuple[Case, ...]
    shipped_logits: tuple[Float32, ...]
    weaker_logits: tuple[Float32, ...]
    scale_answers: tuple[str, ...] | None
    answered: tuple[Answered, ...]


@dataclass(kw_only=True)
class Measurement:
    """One measurement of ``graphs`` (role → file) beside the processor files in ``directory``.

    ``weights`` are the plan's. ``parity`` says whether models are loaded or streamed from disk; see
    ``reference_choice.must_stream``.
    ``scoring`` judges the answers of the task leg.
    ``statistics_sha256`` is the hash of the calibration statistics that the package was made with, where it records
    one: with others, integer codes can't be told from moved ones.
    """

    plan: Plan
    weights: PlannedWeights
    directory: Path
    graphs: Mapping[str, Path]
    log: WorkLog
    parity: ParityMode = PARITY
    scoring: Scoring = SCORING
    statistics_sha256: str | None = None

    def run(self, eval_spec: str | None, limit: int | None) -> Measured:
        """Every leg that applies to the plan; those that don't are named in the report."""
        plan = self.plan
        candidate = self._candidate()
        report = ParityReport(
            executed_by=candidate.executed_by,
            reference=LOADED
            if self._streamed is None
            else f"PyTorch in float32, streamed from disk: {READER}",
            not_checked=unproved(plan),
        )
        with self.log.stage("PyTorch ScAle reference"):
            cases = self.reference_paths()
        with self.log.stage("fold leg"):
            portable = self._portable(self.weights.folded, cases)
            report.fold = fold_leg(cases, portable)
        with self.log.stage("shipped files"):
            shipped = candidate.logits(cases)
            weaker = self._weaker(candidate, cases)
        steps = self._own_legs(report, cases, candidate, portable, shipped)
        prepared = self._preprocessing(report, [(c.prompt, c.inputs) for c in cases])
        chain = [
            ("fold", portable),
            *steps,
            ("preprocessing", prepared_logits(candidate, cases, prepared, shipped)),
        ]
        report.attribution = attribution(cases, chain)
        if plan.target.max_memory_bytes is not None:
            report.skip("memory", "a running package's memory is measured by bench, on the device")
        scale_answers = self._agreement(report, candidate, cases)
        answered = self._task(report, candidate, eval_spec, limit)
        return Measured(
            report=report,
            cases=tuple(cases),
            shipped_logits=tuple(shipped),
            weaker_logits=tuple(weaker),
            scale_answers=scale_answers,
            answered=answered,
        )

    def _weaker(self, candidate: Candidate, cases: Sequence[Case]) -> list[Float32]:
        """See ``Measured.weaker_logits``."""
        if not isinstance(candidate, GraphCandidate) or not candidate.responder.generator.engine.can_override:
            return []
        return [candidate.logits_at(strength, cases[0]) for strength in STRENGTHS]

    @functools.cached_property
    def _streamed(self) -> str | None:
        """Why models are streamed from disk here; None where they are loaded."""
        return must_stream(self.plan.base.checkpoint, self.parity)

    @functools.cached_property
    def _room(self) -> Room:
        """How many prompts the portable decoder runs together."""
        return Room.of(self.plan.base.spec, self.plan.context_length)

    @property
    def _strict_room(self) -> Room:
        """The same of the package's graphs on strict kernels."""
        return self._room if graph_backend(self.plan.target.backend).batches else ALONE

    def reference_paths(self) -> list[Case]:
        """The reference's paths; few and short ones where every step reads the whole model from disk."""
        base, coefficients = self.plan.base, self.plan.coefficients
        text_alone, rules = base.family.takes_text_alone, base.rules
        if self._streamed is None:
            return parity_cases(base.model, base.processor, coefficients, rules=rules, text_alone=text_alone)
        prompts = few_prompts(text_alone=text_alone, questions=parity_questions(coefficients))
        model = base.streamed_reference
        return reference_cases(model, base.processor, coefficients, prompts, steps=1, rules=rules)

    def _preprocessing(self, report: ParityReport, encoded: Sequence[tuple[Prompt, Inputs]]) -> list[Inputs]:
        """Prompts with the base processor's inputs, against those of the package's own files, which are returned.

        Where the package shrinks pictures, large ones are compared too, and what shrinking costs is measured.
        """
        base = self.plan.base
        with self.log.stage("preprocessing leg"):
            processor = base.family.load_processor(self.directory)
            inputs = [self._encoded(processor, prompt)[1] for prompt, _ in encoded]
            large = large_prompts(base, [prompt for prompt, _ in encoded])
            expected = [due_inputs(base, prompt, sized) for prompt, sized in encoded]
            expected += [self._encoded(base.processor, prompt)[1] for prompt in large]
            packaged = inputs + [self._encoded(processor, prompt)[1] for prompt in large]
            shrunk = self._shrinking(large)
            levels = levels_per_unit(base.own_processor)
            facts = facts_error(report, self.plan, self.graphs, processor)
            report.preprocessing = preprocessing_leg(expected, packaged, levels, shrunk, facts)
        if shrunk is not None:
            report.skip("pictures of the base model's own size", str(shrunk))
        return inputs

    def _shrinking(self, large: Sequence[Prompt]) -> Shrinking | None:
        base, coefficients = self.plan.base, self.plan.coefficients
        if not large:
            return None
        if self._streamed is not None:  # a whole model is read for every step
            return shrinking(base, base.streamed_reference, coefficients, large[:1], steps=1)
        return shrinking(base, base.model, coefficients, large, steps=FORCED_STEPS)

    def _encoded(self, processor: Processor, prompt: Prompt) -> tuple[Prompt, Inputs]:
        return prompt, encode_messages(processor, [user_message(prompt.images, prompt.text)])

    def _candidate(self) -> Candidate:
        processor = self.plan.base.family.load_processor(self.directory)
        responder = Responder(
            processor=processor,
            generator=self._generator(open_planned(self.plan, self.graphs)),
            rules=read_rules(self.directory, processor.tokenizer),
        )
        attn, mlp = self.weights.folded.dense()
        return GraphCandidate(responder=responder, trained=Scalars(attn=attn, mlp=mlp))

    def _generator(self, engine: Engine) -> Generator:
        return generator_of(self.plan, engine)

    def _oracle(self, folded: FoldedDecoder) -> Generator:
        """The portable decoder on ``folded``'s weights, float32."""
        kernels = StreamedKernels if self._streamed else TorchKernels
        return self._generator(reference_engine(self.plan, folded, kernels))

    def _portable(self, folded: FoldedDecoder, cases: Sequence[Case]) -> list[Float32]:
        """Its logits along the cases."""
        return path_logits(self._oracle(folded), cases, self._room)

    def _own_legs(
        self,
        report: ParityReport,
        cases: Sequence[Case],
        candidate: Candidate,
        portable: Sequence[Float32],
        shipped: list[Float32],
    ) -> Steps:
        """The legs of graphs: lowering, quantization and runtime."""
        plan = self.plan
        assert isinstance(candidate, GraphCandidate), "others have legs of their own"
        own, oracle = candidate.responder.generator, self._oracle(self.weights.folded)
        if not plan.quantized:
            context = end_of_context(report, plan, oracle, own, plan.precision)
            report.lowering = lowering_leg(portable, shipped, plan.precision, context=context)
            report.skip("quantization", f"weights are {plan.precision}, nothing is quantized")
            report.skip(
                "runtime", f"{plan.precision} graphs have no faster, looser kernels here to compare with"
            )
            return [("lowering", shipped)]
        package = self._generator(open_planned(plan, self.graphs, strict=True))
        with self.log.stage("strict kernels"):
            strict = path_logits(package, cases, self._strict_room)
        with self.log.stage("lowering leg"):
            steps = self._lowering(report, cases, package, strict)
        sides = Sides(
            cases=cases,
            portable=Side(generator=oracle, room=self._room, logits=portable),
            strict=Side(generator=package, room=self._strict_room, logits=strict),
            shipped=Side(generator=own, room=ALONE, logits=shipped),
        )
        judge(report, plan, sides, self.codes_kept(report), self.log, streamed=self._streamed)
        return [*steps, ("runtime", shipped)]

    def _lowering(
        self, report: ParityReport, cases: Sequence[Case], package: Generator, strict: list[Float32]
    ) -> Steps:
        """The lowering leg of quantized graphs, and the chain from float weights to them.

        The graphs are those that ship, on kernels that round nothing: no other graph answers for them. Where a runtime
        has no such kernels, the same quantized weights are emitted once more, in graphs that compute in float32.
        """
        backend, emission = (
            graph_backend(self.plan.target.backend),
            Emission.of(self.plan, self.weights.stored),
        )
        computes = emission.float_types[0]
        if arithmetic := backend.strict_type(computes):
            return self._held(report, cases, package, strict, emission, arithmetic)
        report.skip(
            "shipped graphs on strict kernels",
            f"this runtime computes in {computes} as the graphs say; the lowering leg held graphs of the same "
            f"quantized weights that compute in float32",
        )
        with tempfile.TemporaryDirectory(prefix="scale-export-lowering-") as scratch:
            emission = emission.in_float32()
            names = backend.emit(emission, Path(scratch))
            graphs = {role: Path(scratch) / name for role, name in names.items()}
            twin = self._generator(open_planned(self.plan, graphs, strict=True))
            found = path_logits(twin, cases, self._strict_room)
            return self._held(report, cases, twin, found, emission, "float32")

    def _held(
        self,
        report: ParityReport,
        cases: Sequence[Case],
        package: Generator,
        strict: list[Float32],
        emission: Emission,
        arithmetic: FloatType,
    ) -> Steps:
        """The graphs of an emission, in that ``arithmetic``, against the portable decoder on the same values."""
        oracle = self._stored_oracle(emission.float_types[0])
        engine = Grafted(front=package.engine, decoder=oracle.engine)
        grafted = self._generator(engine)
        expected = path_logits(grafted, cases, self._room)
        report.lowering = lowering_leg(
            expected,
            strict,
            arithmetic,
            weights="dequantized",
            front=front_errors(cases, package, oracle, emission.vision_precision, arithmetic),
            context=end_of_context(report, self.plan, grafted, package, arithmetic),
        )
        return [("quantization", expected), ("lowering", strict)]

    def _stored_oracle(self, keeps: FloatType) -> Generator:
        """The portable decoder on the values that quantized graphs hold, ``keeps`` beside integer codes."""
        return self._oracle(as_stored(self.weights.stored, keeps))

    def codes_kept(self, report: ParityReport) -> dict[str, tuple[str, str]]:
        """Matrix → SHA-256 of the unfolded base's codes and of the package's, for every folded matrix."""
        plan, names = self.plan, self.weights.folded.folded_matrices
        if not names or plan.quantizer is None:
            return {}
        statistics = self.weights.statistics
        if statistics and self.statistics_sha256 not in (None, statistics.sha256):
            report.skip(
                "integer codes", "the calibration statistics collected here are not those of the export"
            )
            return {}
        base = unfolded(plan, statistics)
        found = graph_backend(plan.target.backend).code_hashes(self.graphs, names)
        return {name: (base.block(name).codes_sha256, found[name]) for name in names}

    def _agreement(
        self, report: ParityReport, candidate: Candidate, cases: Sequence[Case]
    ) -> tuple[str, ...] | None:
        """Answers on the parity prompts, whatever the model, unless it is streamed."""
        if self._streamed is not None:
            report.skip(
                "answer agreement", f"the reference would read the model for every token: {self._streamed}"
            )
            return None
        questions = [
            Question(
                id=c.prompt.name,
                instance=c.prompt.name,
                pictures=c.prompt.images,
                prompt=c.prompt.text,
                answer="",
                kind="other",
                topic="parity",
            )
            for c in cases
        ]
        answered = self._ask(
            candidate, questions, "answer agreement", self.plan.base.processor, base_too=False
        )
        limits = self.plan.target.parity.of(self.plan.precision)
        found = report.answer_agreement = parity_answers(answered, limits)
        if found.undecided:
            report.skip(found.name, found.undecided)
        return tuple(a.scale for a in answered)

    def _task(
        self, report: ParityReport, candidate: Candidate, eval_spec: str | None, limit: int | None
    ) -> tuple[Answered, ...]:
        if eval_spec is None:
            report.skip("task", "no evaluation set was named (--eval gridworld, for one)")
            return ()
        if self._streamed is not None:
            report.skip("task", f"the reference would read the model for every token: {self._streamed}")
            return ()
        questions = load_questions(eval_spec, "test", limit=limit)
        if not questions:
            report.skip("task", f"question set {public_name(eval_spec)} has no test questions")
            return ()
        answered = self._ask(candidate, questions, "task leg", self.plan.base.own_processor)
        limits = self.plan.target.parity.of(self.plan.precision)
        leg = task_leg(
            public_name(eval_spec), answered, limits, scoring=self.scoring, questions_sha256=digest(questions)
        )
        report.task = leg
        if leg.unscored:
            reason = f"{leg.unscored} questions have no {self.scoring} rule; their answers are compared only"
            report.skip("accuracy", reason)
        return tuple(answered)

    def _ask(
        self,
        candidate: Candidate,
        questions: Sequence[Question],
        stage: str,
        processor: Processor,
        *,
        base_too: bool = True,
    ) -> list[Answered]:
        """All three answers, as ``ask_all``; ``processor`` prepares the references' questions."""
        base = self.plan.base
        with self.log.stage(stage):
            return ask_all(
                base.model,
                processor,
                self.plan.coefficients,
                candidate.answer,
                questions,
                self.log.advance,
                base_too=base_too,
            )


Steps = list[tuple[str, list[Float32]]]
"""The chain beyond the fold: what each step is called, and the logits after it, the shipped files' last."""
