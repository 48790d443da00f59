"""Checking a package again: hashes and golden cases on any device, every parity leg where the base model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_export.coefficients.file import load_coefficients
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.core.records import NotChecked
from scale_export.device.certificate import DeviceLeg, device_leg, own_result, read_result, save_json
from scale_export.device.package import Package, open_package
from scale_export.device.selftest import SelftestResult, run_selftest
from scale_export.package.hub import package_directory
from scale_export.package.manifest import package_seal
from scale_export.package.requirements import Checked, check_requirements, read_requirements
from scale_export.package.signing import Signature
from scale_export.package.stored_report import read_report
from scale_export.proof.contents import Contents, coefficient_statements

from .request import VerifyRequest

if TYPE_CHECKING:
    from scale_export.proof.report import ParityReport

__all__ = ["Verification", "verify_package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What ``verify`` found.

    ``golden`` (the self-test) is None where the package holds no graphs that this tool runs, ``report`` where only
    the self-test was asked for, ``contents`` where nothing that the package states was compared.
    """

    passed: bool
    golden: SelftestResult | None
    report: ParityReport | None
    contents: Contents | None = None
    requirements: tuple[Checked, ...] = ()
    signature: Signature | None = None
    device: DeviceLeg | None = None

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

    What the package states beside its graphs is compared too, and with ``coeffs`` its scalars. ``selftest_only`` needs
    neither the base model nor torch. With a ``public_key`` the signature is checked before anything of the package is
    used. ``require`` is what the measurement must fulfil beside its own limits.

    Raises:
        UserError: not a package, a changed one, a device's result that is none or not of this package,
             a base model that is not to be found, a requirement that is none or is
            meant for another precision, or a signature that doesn't hold.
    """
    path = package_directory(request.package)
    package = open_package(path, public_key=request.public_key, signature=request.signature)
    requirements = read_requirements(request.require, package.files.manifest.precision)
    size = sum(entry.size for entry in package.files.manifest.files.values())
    golden = None
    if package.files.manifest.backend != "checkpoint":
        with log.stage("self-test"):
            golden = run_selftest(package)
        if request.save is not None:
            table = own_result(package, golden).model_dump(mode="json", by_alias=True)
            save_json(table, Path(request.save), path)
    device = _device(package, request)
    given = None if request.coeffs is None else load_coefficients(Path(request.coeffs))
    statements = [] if given is None else [*coefficient_statements(package.coefficients, given)]
    report, unchecked = None, tuple[NotChecked, ...]()
    if not request.selftest_only:
        report, found = _measured(package, request, log)
        statements += found.statements
        unchecked = found.not_compared
    contents = Contents(statements=tuple(statements), not_compared=unchecked) if statements else None
    figures: dict[str, float | None] = {"selftest": golden.error.finite if golden else None, "size": size}
    figures |= {**(report.figures() if report else {}), **(device.figures() if device else {})}
    checked = check_requirements(requirements, figures)
    parts = [part.passed for part in (golden, contents, report, device) if part is not None]
    return Verification(
        passed=all(parts) and all(c.passed for c in checked),
        golden=golden,
        contents=contents,
        report=report,
        requirements=checked,
        signature=package.signature,
        device=device,
    )


def _device(package: Package, request: VerifyRequest) -> DeviceLeg | None:
    """What a device's result proves; written into a copy of the package's report where that is asked for."""
    graphs = package.files.manifest.backend != "checkpoint"
    if not graphs and (request.device_result or request.save):
        raise UserError("a checkpoint has no self-test: leave out --device-result and --save")
    if request.device_result is None:
        if request.certificate is not None:
            raise UserError("a certificate needs a device's result: give --device-result too")
        return None
    leg = device_leg(package.files, package, read_result(Path(request.device_result)))
    if request.certificate is not None:
        report = read_report(package.files)
        report["legs"]["device"] = leg.to_json()
        report["passed"] = report["passed"] and leg.passed
        report["package"] = package_seal(package.files)
        save_json(report, Path(request.certificate), package.files.directory)
    return leg


def _measured(package: Package, request: VerifyRequest, log: WorkLog) -> tuple[ParityReport, Contents]:
    """Every parity leg, and every file and statement of the package, against the base model."""
    from scale_export.plan.again import plan_again
    from scale_export.plan.evaluation_choice import evaluation_set
    from scale_export.plan.weights import PlannedWeights, plan_statistics
    from scale_export.proof.again import measure_again

    plan = plan_again(package.files, package.coefficients, request, parity=request.parity)
    return measure_again(
        package.files,
        plan,
        PlannedWeights.of(plan, plan_statistics(plan, log)),
        log,
        parity=request.parity,
        scoring=request.scoring,
        evaluation=evaluation_set(request.evaluation, package.coefficients),
        limit=request.eval_limit,
    )
