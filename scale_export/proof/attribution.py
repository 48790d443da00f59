"""Which step of the chain lost how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.core.limits import ROUNDING
from scale_export.core.records import Float32

from .cases import Case
from .legs import answer_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Mean KL in nats from PyTorch ScAle, None where it isn't finite, and share of positions with another best token.

    As a part of a whole either may be negative.
    """

    kl: float | None
    top1_changed: float

    def minus(self, before: Loss) -> Loss:
        """What came to ``before``."""
        kl = self.kl - before.kl if self.kl is not None and before.kl is not None else None
        return Loss(kl=kl, top1_changed=self.top1_changed - before.top1_changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """How much of the whole loss each step brought, in the order of the chain, at ``positions`` of answers."""

    metric: ClassVar = (
        "mean KL in nats from PyTorch ScAle, and share of answer positions with another best token"
    )

    whole: Loss
    parts: Mapping[str, Loss]
    cases: int
    positions: int

    @property
    def passed(self) -> bool | None:
        """Whether the parts add up to the whole, rounding aside; None where some of them is None."""
        kl = [part.kl for part in self.parts.values() if part.kl is not None]
        if self.whole.kl is None or len(kl) < len(self.parts):
            return None
        top1 = [part.top1_changed for part in self.parts.values()]
        return _adds_up(kl, self.whole.kl) and _adds_up(top1, self.whole.top1_changed)

    def steps(self) -> Iterator[tuple[str, Loss]]:
        """Every step with its part, and the whole."""
        yield from self.parts.items()
        yield "whole", self.whole

    def figures(self) -> Mapping[str, float | None]:
        """What a requirement may name."""
        return {"loss": self.whole.kl}

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``, where answer positions are called ``steps``."""
        return {
            "metric": self.metric,
            "whole": asdict(self.whole),
            "parts": {step: asdict(part) for step, part in self.parts.items()},
            "cases": self.cases,
            "steps": self.positions,
            "passed": self.passed,
        }


def attribution(cases: Sequence[Case], stages: Sequence[tuple[str, Sequence[Float32]]]) -> Attribution:
    """How much of the whole loss each step brought: the divergence from PyTorch ScAle after it, minus before it.

    Args:
        cases: with PyTorch ScAle's logits along every path, of which the answers' positions count.
        stages: step → the logits after it, in the order of the chain; the last one is the package as it runs.

    A part may be negative, where a step happens to undo what an earlier one did. The parts add up to the whole, which
    is measured on its own, between the two ends. Parts are None where a divergence isn't finite.
    """
    first = answer_logits(cases, [case.logits for case in cases])
    reached = [_loss(first, first), *(_loss(first, answer_logits(cases, logits)) for _, logits in stages)]
    parts = {
        step: after.minus(before)
        for (step, _), before, after in zip(stages, reached, reached[1:], strict=False)
    }
    last = answer_logits(cases, stages[-1][1])
    return Attribution(whole=_loss(first, last), parts=parts, cases=len(cases), positions=len(first))


def _adds_up(parts: Sequence[float], whole: float) -> bool:
    return abs(sum(parts) - whole) <= ROUNDING * max(1.0, *map(abs, parts))


def _loss(reference: Float32, other: Float32) -> Loss:
    kl, top1 = mean_kl(reference, other), top1_agreement(reference, other)
    assert kl is not None and top1 is not None, "there is at least one case"
    return Loss(kl=kl if np.isfinite(kl) else None, top1_changed=1 - top1)
