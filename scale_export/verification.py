"""Checking a package again: hashes and golden cases on any device, every parity leg where the base model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    """What ``verify`` found; ``parity`` is None where only the self-test was asked for."""

    passed: bool
    selftest: Mapping[str, Any]
    parity: Mapping[str, Any] | None


def verify_package(
    path: Path,
    *,
    model: str | None,
    target: str | None,
    evaluation: str,
    eval_limit: int | None,
    selftest_only: bool,
    log: WorkLog,
    cache: Path | None = None,
) -> Verification:
    """Check hashes and self-test, then measure every parity leg again from the package and the base model.

    ``selftest_only`` needs neither the base model nor torch. ``target`` is the TOML file of a target that is
    not one of ours; None takes ours of the name that the package records.

    Raises:
        UserError: not a package, a changed one, or a base model that is not to be found.
    """
    package = open_package(path)
    with log.stage("self-test"):
        selftest = run_selftest(package)
    if selftest_only:
        return Verification(passed=bool(selftest["passed"]), selftest=selftest, parity=None)
    from .measure import Measurement, evaluation_set

    plan = _plan_again(package, model, target, cache)
    graphs = {str(role): package.files.path(name) for role, name in package.files.manifest.graphs.items()}
    calibration = package.files.manifest.calibration
    measurement = Measurement(
        plan=plan,
        directory=package.files.directory,
        graphs=graphs,
        log=log,
        statistics_sha256=calibration.statistics_sha256 if calibration else None,
    )
    report = measurement.run(evaluation_set(evaluation, package.coefficients), eval_limit).report
    passed = bool(selftest["passed"]) and report.passed
    return Verification(passed=passed, selftest=selftest, parity=report.to_json())


def _plan_again(package: Package, model: str | None, target: str | None, cache: Path | None) -> Plan:
    """The plan that the package was made by, from what its manifest records."""
    from .base import open_base
    from .plan import ExportOptions, make_plan
    from .targets import load_target

    files, recorded = package.files, package.files.manifest
    try:
        base = open_base(model or recorded.base_model, relative_to=files.directory)
    except UserError as error:
        raise UserError(f"{error}; or check the package alone with --selftest") from error
    calibration = recorded.calibration
    options = ExportOptions(
        precision=recorded.precision,
        fold=recorded.fold,
        block_size=recorded.block_size,
        # A package of an earlier version names no quantizer: there was one.
        quantizer=recorded.quantizer or ("auto" if recorded.block_size is None else "rtn"),
        bits=recorded.bits,
        cache=cache,
    )
    if calibration is not None:
        options = replace(
            options,
            calib=calibration.questions,
            calib_limit=calibration.limit,
            calib_weighting=calibration.weighting,
            calib_pictures=calibration.pictures,
        )
    else:
        options = replace(options, calib="none")
    return make_plan(package.coefficients, base, load_target(target or recorded.target), options)
