"""Which step of the chain lost how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scale_export.core.compare import Leg
from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.core.limits import ROUNDING
from scale_export.core.records import Float32

from .cases import Case
from .legs import answer_logits


def attribution(cases: Sequence[Case], stages: Sequence[tuple[str, Sequence[Float32]]]) -> Leg:
    """How much of the whole loss each step brought: the divergence from PyTorch ScAle after it, minus before it.

    Args:
        cases: with PyTorch ScAle's logits along every path, of which the answers' positions count.
        stages: step → the logits after it, in the order of the chain; the last one is the package as it runs.

    A part may be negative, where a step happens to undo what an earlier one did. The parts add up to the whole, which
    is measured on its own, between the two ends. Parts are None where a divergence isn't finite.
    """
    first = answer_logits(cases, [case.logits for case in cases])
    last = answer_logits(cases, stages[-1][1])
    reached = [_loss(first, first), *(_loss(first, answer_logits(cases, logits)) for _, logits in stages)]
    parts = {
        step: {name: _minus(after[name], before[name]) for name in after}
        for (step, _), before, after in zip(stages, reached, reached[1:], strict=False)
    }
    found: Leg = {
        "metric": "mean KL in nats from PyTorch ScAle, and share of answer positions with another best token",
        "whole": _loss(first, last),
        "parts": parts,
        "cases": len(cases),
        "steps": len(first),
    }
    return {**found, "passed": adds_up(found)}


def adds_up(found: Leg) -> bool | None:
    """Whether an attribution's parts add up to its whole, rounding aside; None where some of them is None."""
    for name, whole in found["whole"].items():
        parts = [part[name] for part in found["parts"].values()]
        if whole is None or None in parts:
            return None
        if abs(sum(parts) - whole) > ROUNDING * max(1.0, *map(abs, parts)):
            return False
    return True


def _loss(reference: Float32, other: Float32) -> dict[str, float | None]:
    kl, top1 = mean_kl(reference, other), top1_agreement(reference, other)
    assert kl is not None and top1 is not None, "there is at least one case"
    return {"kl": kl if np.isfinite(kl) else None, "top1_changed": 1 - top1}


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
