"""Plans of random models."""

from __future__ import annotations

from typing import Any

from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients


def plan_of(base: Any, target: str = "cpu", **options: Any) -> Any:
    options = {"precision": "int4", "calib": "gridworld", "calib_limit": 3, "quantizer": "mse", **options}
    return make_plan(random_coefficients(base), base, load_target(target), ExportOptions(**options))
