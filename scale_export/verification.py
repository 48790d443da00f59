"""Checking a package again: hashes and golden cases on any device, every parity leg where the base model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .progress import WorkLog
from .runtime import Package, open_package
from .selftest import run_selftest

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What ``verify`` found.

    ``selftest`` is None where the package holds no graphs that this tool runs, ``parity`` where only the
    self-test was asked for.
    """

    passed: bool
    selftest: Mapping[str, Any] | None
    parity: Mapping[str, Any] | None


def verify_package(
    path: Path,
    *,
    model: str | None,
    target: str | None,
    evaluation: str,
    eval_limit: int | None,
    selftest_only: bool,
    parity: str = "auto",
    log: WorkLog,
) -> Verification:
    """Check hashes and self-test, then measure every parity leg again from the package and the base model.

    ``selftest_only`` needs neither the base model nor torch. ``target`` is the TOML file of a target that is
    not one of ours; None takes ours of the name that the package records. ``parity`` is that of ``FoldRequest``.

    Raises:
        UserError: not a package, a changed one, or a base model that is not to be found.
    """
    package = open_package(path)
    selftest = None
    if package.files.manifest.backend != "checkpoint":
        with log.stage("self-test"):
            selftest = run_selftest(package)
    sound = selftest is None or bool(selftest["passed"])
    if selftest_only:
        return Verification(passed=sound, selftest=selftest, parity=None)
    from .measure import evaluation_set, measurement_of
    from .streaming import parity_mode

    plan = _plan_again(package, model, target)
    graphs = {str(role): package.files.path(name) for role, name in package.files.manifest.graphs.items()}
    measurement = measurement_of(plan)(
        plan=plan,
        directory=package.files.directory,
        graphs=graphs,
        log=log,
        parity=parity_mode(parity),
    )
    report = measurement.run(evaluation_set(evaluation, package.coefficients), eval_limit).report
    return Verification(passed=sound and report.passed, selftest=selftest, parity=report.to_json())


def _plan_again(package: Package, model: str | None, target: str | None) -> Plan:
    """The plan that the package was made by, from what its manifest records."""
    from .base import open_base
    from .plan import ExportOptions, make_plan
    from .targets import load_target

    files, recorded = package.files, package.files.manifest
    try:
        base = open_base(model or recorded.base_model, relative_to=files.directory)
    except UserError as error:
        raise UserError(f"{error}; or check the package alone with --selftest") from error
    options = ExportOptions(precision=recorded.precision, fold=recorded.fold, block_size=recorded.block_size)
    return make_plan(package.coefficients, base, load_target(target or recorded.target), options)
