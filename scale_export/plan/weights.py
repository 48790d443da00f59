"""A plan's weights: the decoder with its scalars placed, in float32 and at the precision that was planned."""

from __future__ import annotations

from dataclasses import dataclass

from scale_export.core.progress import WorkLog
from scale_export.model.folding import FoldedDecoder, fold
from scale_export.quantize import QuantizedWeights, StaticWeights, load_quantizer, quantize
from scale_export.quantize.calibration import StoredStatistics, calibrate

from .record import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWeights:
    """What one export, verification or examination works on; made once and handed on.

    Attributes:
        folded: in float32.
        stored: at the plan's precision; the same value where weights stay floats.
        statistics: what the quantizer was calibrated with; None where it takes none.
    """

    folded: FoldedDecoder
    stored: FoldedDecoder
    statistics: StoredStatistics | None

    @classmethod
    def of(cls, plan: Plan, statistics: StoredStatistics | None) -> PlannedWeights:
        """Of a plan, with the statistics that ``plan_statistics`` collected for it."""
        folded = fold(plan.base.weights, plan.coefficients, plan.fold)
        return cls(folded=folded, stored=quantized(folded, plan, statistics), statistics=statistics)


def plan_statistics(plan: Plan, log: WorkLog) -> StoredStatistics | None:
    """Collect the statistics that a plan's quantizer takes, or find them in the cache; None where it takes none."""
    if plan.calibration is None:
        return None
    return calibrate(plan.base, plan.coefficients, plan.calibration, log, plan.calibration_cache)


def quantized(folded: FoldedDecoder, plan: Plan, statistics: StoredStatistics | None) -> FoldedDecoder:
    """The folded decoder at the plan's weight precision."""
    if plan.quantizer is None:
        return folded
    return quantize(
        folded,
        load_quantizer(plan.quantizer),
        bits=plan.bits,
        block_size=plan.block_size,
        statistics=statistics,
        other_bits=plan.other_bits,
        kind=weights_kind(plan),
        held=plan.base.held,
    )


def unfolded(plan: Plan, statistics: StoredStatistics | None) -> QuantizedWeights:
    """The base's weights quantized as the plan says, without any scalar: what integer codes are compared with."""
    assert plan.quantizer is not None, "the plan quantizes"
    return weights_kind(plan).prepared(
        plan.base.weights,
        load_quantizer(plan.quantizer),
        bits=plan.bits,
        block_size=plan.block_size,
        statistics=statistics,
        other_bits=plan.other_bits,
    )


def weights_kind(plan: Plan) -> type[QuantizedWeights]:
    """What the plan's integer weights are seen through."""
    return StaticWeights if plan.static else QuantizedWeights
