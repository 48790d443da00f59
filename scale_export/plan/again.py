"""The plan that a package was made by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.model.base import open_base
from scale_export.package.manifest import PackageFiles

from .make import make_plan
from .options import ExportOptions
from .record import Plan
from .targets import load_target


def plan_again(
    files: PackageFiles,
    coefficients: Coefficients,
    model: str | None,
    target: str | None,
    calib: str | None = None,
    cache: Path | None = None,
) -> Plan:
    """The plan that a package was made by, from what its manifest records.

    ``calib`` names the question set of calibration with its place, where that is one on a disk.
    """
    recorded = files.manifest
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
            calib=calib or calibration.questions,
            calib_limit=calibration.limit,
            calib_weighting=calibration.weighting,
            calib_pictures=calibration.pictures,
        )
    else:
        options = replace(options, calib="none")
    return make_plan(coefficients, base, load_target(target or recorded.target), options)
