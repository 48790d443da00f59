"""From a coefficient file to a verified package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__
from .base import BaseModel, open_base
from .budget import BitsChoice, parse_budget, search_bits
from .calibration import plan_statistics
from .coefficients import load_coefficients, save_coefficients
from .errors import UserError
from .folding import FoldedDecoder, fold
from .measure import Measured, Measurement, evaluation_set, load_backend
from .package import CalibrationFacts, DecoderFacts, Manifest, Tool
from .plan import ExportOptions, Plan, check_mixed_bits, make_plan, with_bits
from .progress import WorkLog
from .quantize import load_quantizer, quantize
from .records import Coefficients
from .report import render_report
from .report_data import library_versions, report_data
from .runtime import PROCESSOR_FILES
from .selftest import write_selftest
from .staging import StagedPackage, check_destination
from .targets import load_target

BITS_PLAN = "bits.toml"
"""What a search under a budget chose, with all that it measured; ``--bits-plan`` reads it."""
COEFFICIENTS = "scale.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRequest:
    """What ``scale-export fold`` was asked.

    Attributes:
        model: base model directory or hub id; None takes the one that the coefficient file names.
        evaluation: question set of the task leg; ``auto`` takes the one that the coefficients were trained
            on, ``none`` leaves the leg out.
        eval_limit: how many of its test questions, None for all.
        budget: chooses 4 or 8 bits for every matrix, such as ``size=1.2MB``; see ``budget``.
    """

    coeffs: Path
    target: str
    out: Path
    model: str | None = None
    options: ExportOptions = field(default_factory=ExportOptions)
    evaluation: str = "auto"
    eval_limit: int | None = None
    budget: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fold came to: where the files are (``<out>.failed`` where a leg failed) and what was measured."""

    path: Path
    passed: bool
    parity: Mapping[str, Any]
    plan: Plan


def plan_fold(request: FoldRequest) -> Plan:
    """Every refusal, before a weight is loaded."""
    coefficients = load_coefficients(request.coeffs)
    target = load_target(request.target)
    check_destination(request.out, force=request.force)
    base = open_base(request.model or coefficients.base.base_model, relative_to=request.coeffs.parent)
    evaluation_set(request.evaluation, coefficients)
    plan = make_plan(coefficients, base, target, request.options)
    load_backend(target.backend).check(plan)
    if request.budget is not None:
        parse_budget(request.budget)
        check_mixed_bits(plan)
    return plan


def fold_package(request: FoldRequest, log: WorkLog) -> Outcome:
    """Plan, fold, quantize, emit, verify, and write the package whole or not at all."""
    plan = plan_fold(request)
    evaluation = evaluation_set(request.evaluation, plan.coefficients)
    plan, choice = within_budget(plan, request.budget, log)
    with StagedPackage(request.out, force=request.force) as staged:
        directory = staged.directory
        if choice is not None:
            choice.write(directory / BITS_PLAN)
        folded = fold(plan.base.weights, plan.coefficients, plan.fold)
        graphs = emit(quantized(folded, plan, log), plan, directory, log)
        copy_processor(plan.base, directory)
        save_coefficients(portable_coefficients(plan), directory / COEFFICIENTS)
        paths = {role: directory / name for role, name in graphs.items()}
        measurement = Measurement(plan=plan, directory=directory, graphs=paths, log=log, scratch=directory)
        measured = measurement.run(evaluation, request.eval_limit)
        with log.stage("report and self-test"):
            write_proof(plan, measured, directory, request.out.name)
        check_budget(plan, directory)
        passed = measured.report.passed
        path = staged.commit(manifest(plan, graphs, request.out.name)) if passed else staged.fail()
    return Outcome(path=path, passed=passed, parity=measured.report.to_json(), plan=plan)


def within_budget(plan: Plan, budget: str | None, log: WorkLog) -> tuple[Plan, BitsChoice | None]:
    """The plan with the bits that a budget leaves each matrix; unchanged without a budget."""
    if budget is None:
        return plan, None
    with log.stage("bits under the budget"):
        choice = search_bits(plan, parse_budget(budget), log)
    return with_bits(plan, choice.bits, f"--budget {budget}"), choice


def quantized(folded: FoldedDecoder, plan: Plan, log: WorkLog | None = None) -> FoldedDecoder:
    """The folded decoder at the plan's weight precision; collects calibration statistics where they are wanted."""
    if plan.quantizer is None:
        return folded
    return quantize(
        folded,
        load_quantizer(plan.quantizer),
        bits=plan.bits,
        block_size=plan.block_size,
        statistics=plan_statistics(plan, log),
        other_bits=plan.other_bits,
    )


def emit(folded: FoldedDecoder, plan: Plan, directory: Path, log: WorkLog) -> dict[str, str]:
    """Write the target's graphs and side files; role → file name."""
    backend = load_backend(plan.target.backend)
    with log.stage("base model"):
        vision = plan.base.family.vision_module(plan.base.model)
    with log.stage(f"{plan.precision} graphs"):
        graphs = backend.emit(
            folded,
            vision,
            plan,
            directory,
            precision=plan.precision,
            vision_precision=plan.vision_precision,
        )
        backend.emit_side_files(folded, directory)
    return graphs


def check_budget(plan: Plan, directory: Path) -> None:
    """Refuse a package larger than its target allows.

    Raises:
        UserError: the files together pass ``max_package_bytes``.
    """
    limit = plan.target.max_package_bytes
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if limit is not None and size > limit:
        raise UserError(
            f"the package takes {size:,} bytes, and target {plan.target.name} allows {limit:,}: "
            f"choose a smaller --precision or another target"
        )


def portable_coefficients(plan: Plan) -> Coefficients:
    """The coefficients with the base model under the name that makes sense inside a package."""
    identity = replace(plan.coefficients.base, base_model=plan.base.name)
    return replace(plan.coefficients, base=identity)


def copy_processor(base: BaseModel, directory: Path) -> None:
    """Copy the processor's files as they are, so that the device prepares inputs as PyTorch's side does."""
    for name in PROCESSOR_FILES:
        if (base.directory / name).exists():
            shutil.copyfile(base.directory / name, directory / name)


def write_proof(plan: Plan, measured: Measured, directory: Path, name: str) -> None:
    """Write the self-test, ``parity.json`` and ``report.html``."""
    write_selftest(directory, measured.cases, measured.shipped_logits, measured.scale_answers, plan.precision)
    text = json.dumps(
        measured.report.to_json(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    (directory / "parity.json").write_text(text + "\n", encoding="utf-8")
    page = render_report(report_data(plan, measured, directory, name))
    (directory / "report.html").write_text(page, encoding="utf-8")


def _calibration_facts(plan: Plan) -> CalibrationFacts | None:
    statistics, chosen = plan_statistics(plan), plan.calibration
    if statistics is None or chosen is None:
        return None
    return CalibrationFacts(
        questions=chosen.questions,
        limit=chosen.limit,
        weighting=chosen.weighting,
        pictures=chosen.pictures,
        statistics_sha256=statistics.sha256,
    )


def manifest(plan: Plan, graphs: Mapping[str, str], name: str) -> Manifest:
    """The manifest but for its file table, which the package writer fills in."""
    base, spec = plan.base, plan.base.spec
    computes, keeps = plan.float_types
    return Manifest(
        tool=Tool(name="scale-export", version=__version__),
        libraries=library_versions(plan),
        name=name,
        base_model=base.name,
        model_type=base.family.model_type,
        target=plan.target.name,
        backend=plan.target.backend,
        execution_providers=plan.target.execution_providers or (),
        scope=plan.coefficients.scope,
        fold=plan.fold,
        precision=plan.precision,
        block_size=plan.block_size if plan.quantized else None,
        quantizer=plan.quantizer,
        calibration=_calibration_facts(plan),
        bits=dict(plan.other_bits),
        context_length=plan.context_length,
        graphs=dict(graphs),
        decoder=DecoderFacts(
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            activation_dtype=computes,
            kv_dtype=keeps,
        ),
        coefficients=COEFFICIENTS,
        image_token_id=base.family.image_token_id(base.config),
        extras=base.family.runtime_config(base.config),
    )
