"""A plan's weights: the folded decoder at the precision that was planned."""

from __future__ import annotations

from scale_export.core.progress import WorkLog
from scale_export.model.folding import FoldedDecoder
from scale_export.quantize import QuantizedWeights, StaticWeights, load_quantizer, quantize
from scale_export.quantize.calibration import StoredStatistics, calibrate

from .record import Plan


def quantized(folded: FoldedDecoder, plan: Plan, log: WorkLog | None = None) -> FoldedDecoder:
    """The folded decoder at the plan's weight precision; collects calibration statistics where they are wanted."""
    if plan.quantizer is None:
        return folded
    return quantize(
        folded,
        load_quantizer(plan.quantizer),
        bits=plan.bits,
        block_size=plan.block_size,
        statistics=plan_statistics(plan, log),
        other_bits=plan.other_bits,
        kind=weights_kind(plan),
    )


def weights_kind(plan: Plan) -> type[QuantizedWeights]:
    """What the plan's integer weights are seen through."""
    return StaticWeights if plan.static else QuantizedWeights


def plan_statistics(plan: Plan, log: WorkLog | None = None) -> StoredStatistics | None:
    """The statistics that a plan's quantizer uses; None where it uses none."""
    if plan.calibration is None:
        return None
    return calibrate(
        plan.base, plan.coefficients, plan.calibration, log or WorkLog(quiet=True), plan.calibration_cache
    )
