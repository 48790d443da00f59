"""Finding the first place at which an export departs from the PyTorch ScAle model (``scale-export doctor``).

Rules:
1. Stages are examined in the order of the chain, and each is given the reference's own input, so that it answers for
   itself alone.
2. In the decoder every matrix product is watched, see ``products``.
3. One prompt is followed so: of all parity prompts the one whose logits depart most.
4. The strictest kernels are held to the lowering limit. Rounding by faster kernels and by quantization is told
   matrix by matrix, and is a fault only where the package's own report says that its leg failed.
5. Where no stage finds a fault, all that ``verify`` looks at is looked at: a diagnosis never says that there is none
   where ``verify`` fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scale_export.backends.interface import graph_backend, open_planned
from scale_export.coefficients.file import load_coefficients
from scale_export.core import limits
from scale_export.core.compare import relative_error, within_limit, worst_of
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.device.engine import Engine
from scale_export.device.pixels import levels_per_unit
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.blocks import integers_of
from scale_export.model.engine import TappedKernels
from scale_export.model.weights import DecoderWeights
from scale_export.package.manifest import PackageFiles, open_package_files
from scale_export.package.stored_report import failed_checks, read_report
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.plan.portable import generator_of, reference_engine
from scale_export.plan.record import Plan
from scale_export.plan.weights import PlannedWeights, plan_statistics
from scale_export.proof.cases import Case, parity_prompts, parity_questions, reference_cases
from scale_export.proof.image_facts import facts_error
from scale_export.proof.lockstep import Lockstep
from scale_export.proof.preprocessing import preprocessing_leg
from scale_export.proof.products import (
    Departure,
    Product,
    Recorder,
    explain,
    first_departure,
    folded_head,
    follow,
    largest_error,
)
from scale_export.proof.report import ParityReport
from scale_export.proof.shipped_values import Grafted
from scale_export.quantize import CalibrationOptions, QuantizedWeights, StaticWeights
from scale_export.quantize.sources import QuestionSource, parse_source

from .beyond import end_of_context, verified, worst_case
from .codes import CodeEvidence, Moved
from .stages import Diagnosis, Stage

ROWS = 1024
"""Of an embedding table that are compared at once."""

WORST = 5
"""How many matrices a table of roundings names."""

FLOAT16_MAX = 65504.0
EIGHT_BIT_STEP = 1 / 127
"""The most that 8 bits move a value, as a share of its block's largest: Core ML's table beside integer weights."""


def examine(path: Path, origins: Origins, log: WorkLog) -> Diagnosis:
    """Examine a package, or a failed export in its ``.failed`` directory.

    Raises:
        UserError: no export, a changed one, or a base model that is not to be found.
    """
    files = open_package_files(path, failed=True)
    coefficients = load_coefficients(files.path(files.manifest.coefficients))
    plan = plan_again(files, coefficients, origins)
    graph_backend(plan.target.backend)  # which refuses a checkpoint
    return Examination(files=files, plan=plan, log=log).run()


@dataclass(kw_only=True)
class Examination:
    """One run over the parity prompts, and matrix by matrix over one: its prefill and its decode steps."""

    files: PackageFiles
    plan: Plan
    log: WorkLog

    def run(self) -> Diagnosis:
        """Every stage, in order."""
        plan, base = self.plan, self.plan.base
        self.failed_legs = failed_checks(read_report(self.files))
        self.weights = PlannedWeights.of(plan, plan_statistics(plan, self.log))
        self.folded = self.weights.stored
        with self.log.stage("reference"):
            questions, text_alone = parity_questions(plan.coefficients), base.family.takes_text_alone
            prompts = parity_prompts(text_alone=text_alone, questions=questions)
            self.cases = reference_cases(base.model, base.processor, plan.coefficients, prompts)
        vision, embedding = self._towers()
        codes = self._codes(embedding_right=bool(embedding.passed))
        stages = [self._preprocessing(), vision, embedding, *codes, *self._decoder()]
        if all(stage.passed is not False for stage in stages):
            stages.append(verified(self.files, plan, self.weights, self.failed_legs, self.log))
        faults = [fault.words for fault in KNOWN_FAULTS if fault.fits(self)]
        return Diagnosis(stages=tuple(stages), known_faults=tuple(faults), failed_legs=self.failed_legs)

    @property
    def graphs(self) -> dict[str, Path]:
        """Role → file of the export."""
        return {str(role): self.files.path(name) for role, name in self.files.manifest.graphs.items()}

    def _preprocessing(self) -> Stage:
        base = self.plan.base
        processor = base.family.load_processor(self.files.directory)
        inputs = [
            encode_messages(processor, [user_message(case.prompt.images, case.prompt.text)])
            for case in self.cases
        ]
        expected = [case.inputs for case in self.cases]
        report = ParityReport(executed_by="the doctor")
        facts = facts_error(report, self.plan, self.graphs, processor)
        leg = preprocessing_leg(expected, inputs, levels_per_unit(base.processor), facts=facts)
        words = "the package's processor prepares what the base model's does"
        if facts is not None and not facts.passed:
            words = (
                "the image facts in runtime.json give other pixels than the package's processor: export again"
            )
        elif not leg.passed:
            what = "pixels" if leg.ids_identical else "token ids"
            words = (
                f"the package's processor files give other {what} than the base model's: compare the files"
            )
        return Stage(
            name="preprocessing",
            passed=leg.passed,
            value=leg.error.finite,
            limit=leg.error.limit,
            words=words,
        )

    def _towers(self) -> tuple[Stage, Stage]:
        """Vision tower and embedding table: the tower on every picture, the table in every row."""
        plan = self.plan
        engine = open_planned(plan, self.graphs, strict=True)
        oracle = reference_engine(plan, self.folded)
        family, runtime = plan.base.family, plan.base.family.runtime_config(plan.base.config)
        worst: dict[str, float] = {}
        for case in (case for case in self.cases if case.prompt.images):
            tiles = family.tower_inputs(case.inputs, runtime)
            expected, found = oracle.vision(tiles), engine.vision(tiles)
            for name, value in expected.items():
                worst[name] = worst_of([worst.get(name, 0.0), relative_error(value, found[name])])
        limit = limits.LOWERING_RELATIVE[plan.vision_precision]
        vision = _held(
            "vision tower", worst, limit, "the emitted tower gives what Hugging Face's module gives"
        )
        weights = self.folded.weights
        if isinstance(weights, QuantizedWeights) and plan.target.backend == "coreml":
            weights, limit = weights.base, EIGHT_BIT_STEP
        errors = {"embedding": _table_error(weights.embedding().numpy(), engine)}
        words = "the table's rows are the base model's, to the rounding of its precision"
        return vision, _held("embedding", errors, limit, words)

    def _codes(self, embedding_right: bool) -> list[Stage]:
        """Integer codes against those that the plan's method makes of the base model."""
        weights = self.folded.weights
        if not isinstance(weights, QuantizedWeights):
            return []
        names = list(weights.spec.linears())
        moved = dict(self._moved(weights, names))
        if not moved:
            words = f"the integer codes of all {len(names)} matrices are those of the base model"
            return [Stage(name="integer codes", passed=True, words=words)]
        evidence = CodeEvidence(
            names=names,
            moved=moved,
            calibrated=self.plan.calibration is not None,
            recorded=self._recorded(),
            embedding_right=embedding_right,
        )
        if evidence.spread and self.plan.calibration is not None:
            evidence = replace(evidence, made_with=self._made_with(evidence.first))
        return [Stage(name="integer codes", passed=False, place=evidence.first, words=evidence.explain())]

    def _moved(self, weights: QuantizedWeights, names: Sequence[str]) -> Iterator[tuple[str, Moved]]:
        """The matrices whose codes are not ``weights``'."""
        for name, packed in graph_backend(self.plan.target.backend).codes(self.graphs, names):
            block = weights.block(name)
            if packed.size != block.codes.size:
                yield name, Moved(share=1.0, steps=2**block.bits)  # another width
            elif packed.tobytes() != block.codes.tobytes():
                found = integers_of(packed.reshape(block.codes.shape), block.bits, block.in_features)
                yield name, Moved.between(block.integers(), found)

    def _recorded(self) -> bool | None:
        """Whether the manifest names the statistics that were collected here; None where it names none."""
        facts, statistics = self.files.manifest.calibration, self.weights.statistics
        return None if facts is None or statistics is None else facts.statistics_sha256 == statistics.sha256

    def _made_with(self, name: str) -> str | None:
        """The calibration, of those that are easily taken by mistake, whose codes this matrix has."""
        calibration = self.plan.calibration
        assert calibration is not None, "the plan is calibrated"
        others: dict[str, CalibrationOptions | None] = {"those of no calibration at all": None}
        if calibration.pictures and isinstance(parse_source(calibration.source), QuestionSource):
            others["those of the same questions without their pictures"] = replace(
                calibration, pictures=False
            )
        for words, other in others.items():
            plan = replace(self.plan, calibration=other)
            weights = PlannedWeights.of(plan, plan_statistics(plan, self.log)).stored.weights
            assert isinstance(weights, QuantizedWeights), "the plan is quantized"
            if not dict(self._moved(weights, [name])):
                return words
        return None

    def _decoder(self) -> list[Stage]:
        plan = self.plan
        static = isinstance(self.folded.weights, StaticWeights)
        recorders = [Recorder() for _ in range(3)]
        with self.log.stage("decoder, prompt by prompt"):
            case, end = (self.cases[0], []) if static else self._whole_forwards()
        with self.log.stage("decoder, matrix by matrix"):
            oracle = generator_of(
                plan, reference_engine(plan, self.folded, functools.partial(TappedKernels, tap=recorders[0]))
            )
            prompt = oracle.embed_prompt(case.inputs)
            after = [
                oracle.decode_step(token, prompt.next_position + offset)
                for offset, token in enumerate(case.tokens)
            ]
            engines: list[Engine] = [oracle.engine]
            for strict, recorder in zip((True, False), recorders[1:], strict=True):
                engines.append(open_planned(plan, self.graphs, strict=strict, tap=recorder))
            for engine, recorder in zip(engines, recorders, strict=True):
                follow(generator_of(plan, engine), prompt, after, recorder.begin)
            self.reference, self.strict, self.shipped = (recorder.forwards for recorder in recorders)
            if static:
                lockstep = Lockstep(self.strict)
                stepped = generator_of(plan, reference_engine(plan, self.folded, lockstep.kernels))
                follow(stepped, prompt, after, lockstep.begin)
                self.reference = lockstep.forwards
        return [self._lowering(), *end, *self._roundings()]

    def _whole_forwards(self) -> tuple[Case, list[Stage]]:
        """The parity prompt whose logits depart most, and the end of the context; on strict kernels."""
        plan, limit = self.plan, limits.LOWERING_RELATIVE[self.plan.float_types[0]]
        oracle = generator_of(plan, reference_engine(plan, self.folded))
        package = open_planned(plan, self.graphs, strict=True)
        if plan.quantized:
            package = Grafted(front=oracle.engine, decoder=package)
        strict = generator_of(plan, package)
        stage = end_of_context(plan, oracle, strict, limit)
        return worst_case(self.cases, oracle, strict), [] if stage is None else [stage]

    def _lowering(self) -> Stage:
        limit = limits.LOWERING_RELATIVE[self.plan.float_types[0]]  # norms and block scales are stored so
        found = first_departure(self.reference, self.strict, limit)
        if found is None:
            words = (
                f"all matrix products of {len(self.reference)} forwards are the reference's on strict kernels"
            )
            worst = largest_error(self.reference, self.strict)
            return Stage(name="decoder", passed=True, value=worst, limit=limit, words=words)
        place, words = explain(found, self.plan.base.spec, limit)
        if head := self._folded_head(found):
            place = place.replace("o_proj", f"head.{head[0]}")
            words = f"{words}; what departs is head {head[0]} alone, by a factor of {head[1]:.3g}"
        value = found.error if np.isfinite(found.error) else None
        return Stage(name="decoder", passed=False, value=value, limit=limit, place=place, words=words)

    def _folded_head(self, found: Departure) -> tuple[int, float] | None:
        """The head whose columns of a folded ``o_proj`` carry another factor, where that is all that departs."""
        if found.at_input or not found.matrix.endswith(".o_proj"):
            return None
        folded = self.folded.weights if self.folded.scaled is None else self.folded.scaled
        return folded_head(found, folded.matrix(found.matrix).numpy(), self.plan.base.spec.num_heads)

    def _roundings(self) -> list[Stage]:
        """What quantization and this machine's kernels round, each matrix on its own (rule 4)."""
        stages = []
        for leg, what, rounding in (
            ("quantization", "of its weights' rounding", self._by_quantization),
            ("runtime", "of faster kernels", self._by_kernels),
        ):
            table = rounding() if self.plan.quantized else {}
            if not table:
                continue
            worst = dict(sorted(table.items(), key=lambda item: -item[1])[:WORST])
            name, value = next(iter(worst.items()))
            failed = leg in self.failed_legs
            stages.append(
                Stage(
                    name=leg,
                    passed=False if failed else None,
                    value=value,
                    place=name if failed else None,
                    words=f"{name} departs most {what}",
                    table=worst,
                )
            )
        return stages

    def _by_quantization(self) -> dict[str, float]:
        """Matrix → error of its product with quantized weights, on the reference's input."""
        assert isinstance(self.folded.weights, QuantizedWeights), "the plan is quantized"
        plain = self.folded.weights.base
        return {
            name: relative_error(_product(plain, name, x), y) for name, (x, y) in self.reference[0].items()
        }

    def _by_kernels(self) -> dict[str, float]:
        """Matrix → error of the shipped kernel, on the input that it was given."""
        return {
            name: relative_error(_product(self.folded.weights, name, x), y)
            for name, (x, y) in self.shipped[0].items()
        }


def _table_error(table: Float32, engine: Engine) -> float:
    """The largest error of an engine's embedding table ``[V, D]``, part by part."""
    none, errors = np.zeros((0, engine.hidden_size), np.float32), []
    for start in range(0, len(table), ROWS):
        rows = table[start : start + ROWS]
        found = engine.embed(np.arange(start, start + len(rows), dtype=np.int64)[None], none)
        errors.append(relative_error(rows[None], found))
    return worst_of(errors)


def _held(name: str, errors: Mapping[str, float], limit: float, right: str) -> Stage:
    """A stage of named outputs, each held to the same limit."""
    place, value = max(errors.items(), key=lambda item: worst_of([item[1]]))
    passed = within_limit(value, limit)
    return Stage(
        name=name,
        passed=passed,
        value=value if np.isfinite(value) else None,
        limit=limit,
        place=None if passed else place,
        words=right if passed else f"{place} departs from the base model's",
    )


def _product(weights: DecoderWeights, name: str, x: Float32) -> Float32:
    if isinstance(weights, StaticWeights):
        rounded: Float32 = weights.product(name, torch.from_numpy(x)).numpy()
        return rounded
    y: Float32 = F.linear(torch.from_numpy(x), weights.matrix(name), weights.bias(name)).numpy()
    return y


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFault:
    """A fault of a runtime that is known, and how it looks here."""

    words: str
    fits: Callable[[Examination], bool]


def _all_zero(examination: Examination) -> bool:
    strict, shipped = (forwards[0]["lm_head"][1] for forwards in (examination.strict, examination.shipped))
    return bool(np.any(strict)) and not np.any(shipped)


def _beyond_float16(examination: Examination) -> bool:
    products: Sequence[Product] = list(examination.reference[0].values())
    reach = max(float(np.abs(value).max()) for product in products for value in product)
    return examination.plan.float_types[0] == "float16" and reach > FLOAT16_MAX


KNOWN_FAULTS = (
    KnownFault(
        words="ONNX Runtime 1.31's MatMulNBits gives zeros on a CPU at accuracy level 4 where block scales are no "
        "constants: keep scales as initializers",
        fits=_all_zero,
    ),
    KnownFault(
        words="activations pass 65,504, float16's largest number: use a target that computes in float32",
        fits=_beyond_float16,
    ),
)
