"""Checking a package again: hashes and golden cases on any device, every parity leg where the base model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.device.package import open_package
from scale_export.device.selftest import SelftestResult, run_selftest
from scale_export.package.requirements import Checked, check_requirements, read_requirements
from scale_export.package.signing import Signature, check_signature

from .request import VerifyRequest

if TYPE_CHECKING:
    from scale_export.proof.report import ParityReport

__all__ = ["Verification", "verify_package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What ``verify`` found.

    ``golden`` (the self-test) is None where the package holds no graphs that this tool runs, ``report`` where only
    the self-test was asked for.
    """

    passed: bool
    golden: SelftestResult | None
    report: ParityReport | None
    requirements: tuple[Checked, ...] = ()
    signature: Signature | None = None

    @property
    def selftest(self) -> Mapping[str, Any] | None:
        """The self-test as JSON has it."""
        return self.golden.to_json() if self.golden else None

    @property
    def parity(self) -> Mapping[str, Any] | None:
        """What was measured, as in ``parity.json``."""
        return self.report.to_json() if self.report else None


def verify_package(request: VerifyRequest, log: WorkLog) -> Verification:
    """Check hashes and self-test, then measure every parity leg again from the package and the base model.

    ``selftest_only`` needs neither the base model nor torch. With a ``public_key`` the signature is checked before
    anything of the package is used. ``require`` is what the measurement must fulfil beside its own limits.

    Raises:
        UserError: not a package, a changed one, a base model that is not to be found, a requirement that is none or is
            meant for another precision, or a signature that doesn't hold.
    """
    path = Path(request.package)
    signed = _signed_by(path, request)
    package = open_package(path)
    requirements = read_requirements(request.require, package.files.manifest.precision)
    size = sum(entry.size for entry in package.files.manifest.files.values())
    golden = None
    if package.files.manifest.backend != "checkpoint":
        with log.stage("self-test"):
            golden = run_selftest(package)
    sound = golden is None or golden.passed
    figures: dict[str, float | None] = {"selftest": golden.error.finite if golden else None, "size": size}
    if request.selftest_only:
        checked = check_requirements(requirements, figures)
        passed = sound and all(c.passed for c in checked)
        return Verification(passed=passed, golden=golden, report=None, requirements=checked, signature=signed)
    from scale_export.plan.again import plan_again
    from scale_export.plan.evaluation_choice import evaluation_set
    from scale_export.plan.weights import PlannedWeights, plan_statistics
    from scale_export.proof.choose import measurement_of

    plan = plan_again(package.files, package.coefficients, request, parity=request.parity)
    graphs = {str(role): package.files.path(name) for role, name in package.files.manifest.graphs.items()}
    calibration = package.files.manifest.calibration
    measurement = measurement_of(plan)(
        plan=plan,
        weights=PlannedWeights.of(plan, plan_statistics(plan, log)),
        directory=package.files.directory,
        graphs=graphs,
        log=log,
        parity=request.parity,
        scoring=request.scoring,
        statistics_sha256=calibration.statistics_sha256 if calibration else None,
    )
    report = measurement.run(
        evaluation_set(request.evaluation, package.coefficients), request.eval_limit
    ).report
    checked = check_requirements(requirements, {**figures, **report.figures()})
    passed = sound and report.passed and all(c.passed for c in checked)
    return Verification(passed=passed, golden=golden, report=report, requirements=checked, signature=signed)


def _signed_by(package: Path, request: VerifyRequest) -> Signature | None:
    """The package's signature, checked; None where no key was given."""
    if request.signature is not None and request.public_key is None:
        raise UserError("a signature can only be checked with its signer's public key: give --public-key too")
    if request.public_key is None:
        return None
    place = None if request.signature is None else Path(request.signature)
    return check_signature(package, Path(request.public_key), place)
