"""The plan that a package was made by."""

from __future__ import annotations

from dataclasses import replace

from scale_export.coefficients.file import Coefficients
from scale_export.core.defaults import PARITY
from scale_export.core.errors import UserError
from scale_export.core.words import BLOCKWISE, ParityMode
from scale_export.model.base import open_base
from scale_export.package.manifest import PackageFiles

from .bits import MIXED_BACKENDS
from .make import make_plan
from .options import ExportOptions, Origins
from .record import Plan
from .reference_choice import holding
from .targets import load_recorded_target, load_target


def plan_again(
    files: PackageFiles, coefficients: Coefficients, origins: Origins, *, parity: ParityMode = PARITY
) -> Plan:
    """The plan that a package was made by, from what its manifest records and where its origins lie.

    ``parity`` decides whether the base's weights are held; see ``holding``.

    Raises:
        UserError: the base model, the target or the question set is not to be found, or is another one.
    """
    recorded = files.manifest
    try:
        base = open_base(origins.model or recorded.base_model, relative_to=files.directory)
    except UserError as error:
        raise UserError(f"{error}; or check the package alone with --selftest") from error
    target = load_target(origins.target) if origins.target else load_recorded_target(recorded.target)
    mixes = target.backend in MIXED_BACKENDS
    options = ExportOptions(
        precision=recorded.precision,
        activations=recorded.decoder.activation_dtype if recorded.precision in BLOCKWISE else None,
        fold=recorded.fold,
        block_size=recorded.block_size,
        # A package of an earlier version names no quantizer: there was one.
        quantizer=recorded.quantizer or ("auto" if recorded.block_size is None else "rtn"),
        bits=recorded.bits or ("uniform" if recorded.precision == "int4" and mixes else None),
        cache=origins.cache,
        calib="none",
    )
    if (calibration := recorded.calibration) is not None:
        options = replace(
            options,
            calib=origins.calib or calibration.questions,
            calib_limit=calibration.limit,
            calib_weighting=calibration.weighting,
            calib_text_only=not calibration.pictures,
        )
    return make_plan(coefficients, holding(base, parity), target, options)
