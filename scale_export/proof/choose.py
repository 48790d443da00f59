"""What measures a plan's files."""

from __future__ import annotations

from scale_export.backends.interface import GraphBackend, load_backend
from scale_export.plan.record import Plan

from .measure import Measurement


def measurement_of(plan: Plan) -> type[Measurement]:
    """What measures that plan's files."""
    if not isinstance(load_backend(plan.target.backend), GraphBackend):
        from .measure_checkpoint import CheckpointMeasurement

        return CheckpointMeasurement
    if plan.static:
        from .measure_static import StaticMeasurement

        return StaticMeasurement
    return Measurement
