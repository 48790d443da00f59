"""The legs that compare distributions over tokens: what quantization changes, and what this machine's kernels do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from scale_export.core.compare import within_limit
from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.core.records import Float32
from scale_export.plan.targets import ParityLimits

from .cases import Case
from .legs import answer_logits
from .numbers import number
from .rows import Row, at_least, at_most, holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Two distributions over tokens, compared at the ``positions`` that belong to answers.

    Attributes:
        kl: mean Kullback-Leibler divergence in nats; infinite or NaN where logits are not finite.
        top1_agreement: share of the positions with the same best token.
        max_kl, min_top1: their limits; None for none.
    """

    kl: float
    top1_agreement: float
    positions: int
    max_kl: float | None
    min_top1: float | None

    @property
    def passed(self) -> bool | None:
        """Whether both are within their limits; a divergence that is not finite, or of no position, never is."""
        if not self.positions or not np.isfinite(self.kl):
            return False
        checks = [self.max_kl is None or within_limit(self.kl, self.max_kl)]
        checks.append(self.min_top1 is None or self.top1_agreement >= self.min_top1)
        return None if self.max_kl is None and self.min_top1 is None else all(checks)

    @property
    def finite_kl(self) -> float | None:
        """The divergence, None where it is not finite."""
        return self.kl if np.isfinite(self.kl) else None

    def counted(self, cases: int) -> str:
        """On how much it was measured, in words."""
        return f"{number(cases)} cases, {number(self.positions)} answer positions"

    def rows(self, leg: str) -> tuple[Row, Row]:
        """The rows of the leg that it belongs to."""
        return (
            at_most(leg, "mean KL, nats", self.kl, self.max_kl),
            at_least(leg, "top-1 agreement", self.top1_agreement, self.min_top1, lost="top-1 changed"),
        )

    def to_json(self, cases: int) -> dict[str, object]:
        """As it stands in ``parity.json``, where answer positions are called ``steps``."""
        return {
            "kl": self.finite_kl,
            "top1_agreement": self.top1_agreement,
            "limits": {"kl": self.max_kl, "top1_agreement": self.min_top1},
            "cases": cases,
            "steps": self.positions,
        }


def divergence(
    cases: Sequence[Case],
    reference: Sequence[Float32],
    other: Sequence[Float32],
    max_kl: float | None,
    min_top1: float | None,
) -> Divergence:
    """The divergence of ``other`` from ``reference``, logits along every case's path."""
    left, right = answer_logits(cases, reference), answer_logits(cases, other)
    kl, top1 = mean_kl(left, right), top1_agreement(left, right)
    assert kl is not None and top1 is not None, "there is at least one case"
    return Divergence(kl=kl, top1_agreement=top1, positions=len(left), max_kl=max_kl, min_top1=min_top1)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationLeg:
    """Quantized graph on strict kernels against the portable decoder on float weights.

    Folding must not have moved integer codes.

    ``codes``: matrix → SHA-256 of the base's codes and of the package's, for every folded matrix; empty where none is.
    """

    name: ClassVar = "quantization"
    meaning: ClassVar = "portable decoder, float weights → quantized graph, strictest kernels"

    divergence: Divergence
    cases: int
    codes: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def codes_identical(self) -> bool:
        """Whether every folded matrix has the codes of the base's."""
        return all(base == packaged for base, packaged in self.codes.values())

    @property
    def passed(self) -> bool | None:
        return self.divergence.passed if self.codes_identical else False

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        rows = self.divergence.rows(self.name)
        label = f"integer codes unchanged by folding, {number(len(self.codes))} matrices"
        return (*rows, holds(label, self.codes_identical)) if self.codes else rows

    def figures(self) -> Mapping[str, float | None]:
        return {"kl": self.divergence.finite_kl, "top1": self.divergence.top1_agreement}

    def to_json(self) -> dict[str, object]:
        found = {**self.divergence.to_json(self.cases), "passed": self.passed}
        if self.codes:
            found["folded_matrices"] = len(self.codes)
            found["codes_sha256"] = {name: packaged for name, (_, packaged) in self.codes.items()}
            found["codes_identical"] = self.codes_identical
        return found


def quantization_leg(
    cases: Sequence[Case],
    plain: Sequence[Float32],
    strict: Sequence[Float32],
    limits: ParityLimits,
    codes: Mapping[str, tuple[str, str]],
) -> QuantizationLeg:
    """The quantization leg of logits on float weights, and of the quantized graph's on strict kernels.

    ``codes`` are as in the record.
    """
    found = divergence(cases, plain, strict, limits.max_kl, limits.min_top1_agreement)
    return QuantizationLeg(divergence=found, cases=len(cases), codes=codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLeg:
    """The package's kernels on this machine against the strictest ones."""

    name: ClassVar = "runtime"
    meaning: ClassVar = "strictest kernels → those of this machine"

    divergence: Divergence
    cases: int

    @property
    def passed(self) -> bool | None:
        return self.divergence.passed

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        return self.divergence.rows(self.name)

    def figures(self) -> Mapping[str, float | None]:
        return {"runtime.kl": self.divergence.finite_kl, "runtime.top1": self.divergence.top1_agreement}

    def to_json(self) -> dict[str, object]:
        return {**self.divergence.to_json(self.cases), "passed": self.passed}


def runtime_leg(
    cases: Sequence[Case], strict: Sequence[Float32], shipped: Sequence[Float32], limits: ParityLimits
) -> RuntimeLeg:
    """The runtime leg of the same graphs' logits on strict kernels and as they ship."""
    found = divergence(cases, strict, shipped, limits.runtime_max_kl, limits.runtime_min_top1_agreement)
    return RuntimeLeg(divergence=found, cases=len(cases))
