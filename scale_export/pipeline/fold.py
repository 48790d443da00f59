"""From a coefficient file to a verified package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scale_export.backends.interface import Emission, GraphBackend, load_backend
from scale_export.coefficients.file import load_coefficients, save_coefficients
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel, open_base
from scale_export.model.blocks import Bits
from scale_export.package.requirements import Checked, check_requirements, read_requirements
from scale_export.package.staging import StagedPackage, check_destination
from scale_export.plan.bits import check_mixed, fixed_bits
from scale_export.plan.estimate import check_package_size, estimates
from scale_export.plan.evaluation_choice import evaluation_set
from scale_export.plan.make import make_plan, with_bits
from scale_export.plan.record import Plan
from scale_export.plan.reference_choice import holding
from scale_export.plan.targets import load_target
from scale_export.plan.weights import PlannedWeights, plan_statistics
from scale_export.proof.choose import measurement_of
from scale_export.proof.report import ParityReport
from scale_export.quantize import write_bits_plan
from scale_export.quantize.calibration import StoredStatistics
from scale_export.search.budget import BitsChoice, Timer, check_reach, parse_budget, search_bits
from scale_export.search.timing import seconds_per_token

from .contents import (
    check_budget,
    manifest,
    portable_coefficients,
    write_proof,
)
from .request import FoldRequest

__all__ = ["Outcome", "fold_package", "plan_fold"]

BITS_PLAN: Final = "bits.toml"
"""Bits of every matrix where some have their own, with what a search measured; ``--bits-plan`` reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fold came to: where the files are, and what was measured.

    They lie in ``<out>.failed`` where a leg failed, or a requirement did not hold.
    """

    path: Path
    passed: bool
    report: ParityReport
    plan: Plan
    requirements: tuple[Checked, ...] = ()

    @property
    def parity(self) -> Mapping[str, Any]:
        """What was measured, as it stands in ``parity.json``."""
        return self.report.to_json()


def plan_fold(request: FoldRequest, base: BaseModel | None = None) -> Plan:
    """Every refusal, before a weight is loaded; ``base`` as in ``fold_package``."""
    coeffs = Path(request.coeffs)
    coefficients = load_coefficients(coeffs)
    target = load_target(request.target)
    check_destination(request.destination, force=request.force)
    base = base or open_base(request.model or coefficients.base.base_model, relative_to=coeffs.parent)
    evaluation_set(request.evaluation, coefficients)
    backend = load_backend(target.backend)
    plan = make_plan(coefficients, holding(base, request.parity), target, request)
    if request.parity == "files" and isinstance(backend, GraphBackend):
        raise UserError(
            f"--parity files is for checkpoints; graphs for {target.name} must be run to be proved: "
            f"use --parity streamed"
        )
    backend.check(plan)
    read_requirements(request.require, plan.precision, exporting=True)
    if request.budget is not None:
        budget = parse_budget(request.budget)
        if request.bits:
            raise UserError("--budget chooses the bits of every matrix: leave out --bits-plan")
        check_mixed(plan.target, plan.precision)
        reason = backend.not_timed(plan.target) if isinstance(backend, GraphBackend) else None
        if budget.kind == "decode" and reason:
            raise UserError(f"--budget {request.budget} measures speed on this machine, and {reason}")
        check_reach(plan, budget)
    check_package_size(plan, under_budget=request.budget is not None)
    return plan


def fold_package(request: FoldRequest, log: WorkLog, base: BaseModel | None = None) -> Outcome:
    """Plan, fold, quantize, write graphs or a checkpoint, verify, and put the package in place whole or not at all.

    Args:
        base: the base model, opened already, in place of the one that the request names. Several folds of one base
            then share what they open, read and trace.
    """
    plan = plan_fold(request, base)
    for sentence in estimates(plan, under_budget=request.budget is not None):
        log.say(sentence)
    backend = load_backend(plan.target.backend)
    evaluation = evaluation_set(request.evaluation, plan.coefficients)
    statistics = plan_statistics(plan, log)
    plan, choice = within_budget(plan, statistics, request.budget, log)
    check_package_size(plan, under_budget=False)
    weights = PlannedWeights.of(plan, statistics)
    needed = backend.least_bytes(plan.base)
    with StagedPackage(request.destination, force=request.force, needed_bytes=needed) as staged:
        directory = staged.directory
        if choice is not None:
            choice.write(directory / BITS_PLAN)
        elif request.bits:
            write_bits_plan(bits_by_matrix(plan), directory / BITS_PLAN)
        with log.stage(f"{plan.precision} {backend.makes}"):
            graphs = backend.write(Emission.of(plan, weights.stored), directory)
        coefficients = directory / backend.coefficients
        coefficients.parent.mkdir(exist_ok=True)
        save_coefficients(portable_coefficients(plan), coefficients)
        measurement = measurement_of(plan)(
            plan=plan,
            weights=weights,
            directory=directory,
            graphs={role: directory / name for role, name in graphs.items()},
            log=log,
            parity=request.parity,
            scoring=request.scoring,
        )
        measured = measurement.run(evaluation, request.eval_limit)
        with log.stage("report and self-test"):
            write_proof(plan, measured, directory, request.destination.name, choice)
        check_budget(plan, directory)
        described = manifest(plan, statistics, graphs, request.destination.name)
        checked = _required(request, plan, measured.report, directory)
        passed = measured.report.passed and all(one.passed for one in checked)
        path = staged.commit(described) if passed else staged.fail(described)
    return Outcome(path=path, passed=passed, report=measured.report, plan=plan, requirements=checked)


def _required(request: FoldRequest, plan: Plan, report: ParityReport, directory: Path) -> tuple[Checked, ...]:
    """What the request asks for beside the limits, with what was measured."""
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    required = read_requirements(request.require, plan.precision, exporting=True)
    return check_requirements(required, {**report.figures(), "size": size})


def bits_by_matrix(plan: Plan) -> dict[str, Bits]:
    """Of every matrix but those that the target decides on: what ``--bits-plan`` takes to repeat the plan."""
    names = [*plan.base.spec.linears(), "embedding"]
    return {n: plan.other_bits.get(n, plan.bits) for n in names if n not in fixed_bits(plan.target)}


def within_budget(
    plan: Plan,
    statistics: StoredStatistics | None,
    budget: str | None,
    log: WorkLog,
    timer: Timer = seconds_per_token,
) -> tuple[Plan, BitsChoice | None]:
    """The plan with the bits that a budget leaves each matrix; unchanged without a budget."""
    if budget is None:
        return plan, None
    with log.stage("bits under the budget"):
        choice = search_bits(plan, statistics, parse_budget(budget), log, timer)
    chosen = with_bits(plan, choice.bits, f"--budget {budget}")
    chosen = replace(chosen, decisions=(*chosen.decisions, choice.sentence(budget)))
    log.say(choice.sentence(budget))
    if choice.speed is not None:
        found = choice.speed.chosen
        said = "" if found.predicted is None else f", where {found.predicted:.4g} were predicted"
        words = f"On this machine it was measured to decode {found.measured:.4g} tokens/s{said}."
        chosen = replace(chosen, decisions=(*chosen.decisions, words))
    return chosen, choice
