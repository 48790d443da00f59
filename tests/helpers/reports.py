"""The parity legs of a random model's package that no fold put into place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from scale_export.backends.interface import graph_backend
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.choose import measurement_of
from scale_export.proof.report import ParityReport
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import emission_of, weights_of


def report_of(base: BaseModel, directory: Path, target: str, precision: Any, **asked: Any) -> ParityReport:
    """The legs of a package."""
    options = ExportOptions(precision=precision, fold="gate", quantizer="rtn", calib_limit=4, **asked)
    if precision == "w8a8":
        options = replace(options, calib="gridworld")
    plan = make_plan(random_coefficients(base), base, load_target(target), options)
    weights = weights_of(plan)
    names = graph_backend(plan.target.backend).write(emission_of(plan, weights.stored), directory)
    graphs = {role: directory / name for role, name in names.items()}
    measurement = measurement_of(plan)(
        plan=plan,
        weights=weights,
        directory=directory,
        graphs=graphs,
        log=WorkLog(quiet=True),
        parity="streamed",  # few prompts
    )
    return measurement.run(None, None).report
