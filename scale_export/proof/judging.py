"""The quantization and the runtime leg, on as many answers as their limits need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scale_export.core.limits import DECIDED_ODDS
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.device.generation import Generator
from scale_export.plan.record import Plan

from .cases import ROUNDS, Case, more_cases
from .distributions import quantization_leg, runtime_leg
from .paths import Room, path_logits
from .report import ParityReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of the two legs: an engine, how many prompts it runs together, and its logits along the cases."""

    generator: Generator
    room: Room
    logits: Sequence[Float32]

    def grown(self, cases: Sequence[Case]) -> Side:
        """The side with the logits of further cases."""
        more = path_logits(self.generator, cases, self.room)
        return Side(generator=self.generator, room=self.room, logits=[*self.logits, *more])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The portable decoder on float weights, the package's graphs on strict kernels, and the package as it runs."""

    cases: Sequence[Case]
    portable: Side
    strict: Side
    shipped: Side

    def grown(self, cases: Sequence[Case]) -> Sides:
        """All sides with further cases."""
        return Sides(
            cases=[*self.cases, *cases],
            portable=self.portable.grown(cases),
            strict=self.strict.grown(cases),
            shipped=self.shipped.grown(cases),
        )


def judge(
    report: ParityReport,
    plan: Plan,
    sides: Sides,
    codes: Mapping[str, tuple[str, str]],
    log: WorkLog,
    *,
    streamed: str | None,
) -> None:
    """Both legs into the report; while one is undecided, more questions are asked, ``ROUNDS`` times at the most.

    Args:
        codes: as in ``QuantizationLeg``.
        streamed: why the model is streamed from disk; it is asked nothing more, since it would be read for every token.
    """
    base, limits, by_value = plan.base, plan.target.parity.of(plan.precision), streamed is not None
    for number in range(len(ROUNDS) + 1):
        cases, strict = sides.cases, sides.strict.logits
        quantization = quantization_leg(
            cases, sides.portable.logits, strict, limits, codes, by_value=by_value
        )
        runtime = runtime_leg(cases, strict, sides.shipped.logits, limits, by_value=by_value)
        if not (quantization.undecided or runtime.undecided) or number == len(ROUNDS):
            break
        with log.stage(f"more questions, round {number + 1}"):
            sides = sides.grown(more_cases(base.model, base.processor, plan.coefficients, number, base.rules))
    report.quantization, report.runtime = quantization, runtime
    if streamed is not None:
        reason = f"the model would be read for every token: {streamed}; values alone were judged"
        report.skip("intervals of the quantization and runtime legs", reason)
    if not quantization.divergence.decided_positions:
        reason = f"the model nowhere gives a token {DECIDED_ODDS:g} times the next one's probability"
        report.skip("top-1 agreement at decided positions", reason)
