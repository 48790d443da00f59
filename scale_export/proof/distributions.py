"""The legs that compare distributions over tokens: what quantization changes, and what this machine's kernels do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Literal

import numpy as np

from scale_export.core.compare import within_limit
from scale_export.core.intervals import (
    Z_90,
    Estimate,
    clustered_mean,
    decided,
    kl_rows,
    proportion,
    same_best,
)
from scale_export.core.records import Float32
from scale_export.plan.targets import ParityLimits

from .cases import Case
from .numbers import interval, number
from .rows import Row, at_least, at_most, holds

Within = Literal["within", "beyond", "undecided", "no limit"]
"""On which side of its limit a figure lies, its interval included."""
NO_PASS: Final = frozenset({"beyond", "undecided"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Two distributions over tokens, compared at the ``positions`` that belong to answers.

    A limit is kept or passed only where the whole interval lies on that side of it: 90 %, so that each end is a bound
    that holds in 95 of 100 cases.

    Attributes:
        kl_estimate: mean Kullback-Leibler divergence in nats; infinite or NaN where logits are not finite.
        top1_estimate: share of the positions with the same best token.
        decided_estimate: the same of those at which the reference is decided (``core.intervals.decided``); None where
            it nowhere is.
        max_kl, min_top1: the limits of the divergence and of the decided share; None for none.
        by_value: whether the values alone are held to the limits: where no more positions can be had.
    """

    kl_estimate: Estimate
    top1_estimate: Estimate
    decided_estimate: Estimate | None
    max_kl: float | None
    min_top1: float | None
    by_value: bool = False

    @property
    def kl(self) -> float:
        """The divergence."""
        return self.kl_estimate.value

    @property
    def top1_agreement(self) -> float:
        """The share of positions with the same best token."""
        return self.top1_estimate.value

    @property
    def decided_agreement(self) -> float | None:
        """The same where the reference is decided."""
        return None if self.decided_estimate is None else self.decided_estimate.value

    @property
    def positions(self) -> int:
        """On how many positions the first two rest."""
        return self.top1_estimate.cases

    @property
    def decided_positions(self) -> int:
        """On how many the third rests."""
        return 0 if self.decided_estimate is None else self.decided_estimate.cases

    @property
    def kl_within(self) -> Within:
        """Whether the divergence is within its limit; one that is not finite never is."""
        found, limit = self.kl_estimate, self.max_kl
        if limit is None:
            return "no limit"
        if not np.isfinite(found.value):
            return "beyond"
        if self._by_value(limit, 0.0):
            return "within" if within_limit(found.value, limit) else "beyond"
        if found.low is None or found.high is None:
            return "undecided"
        return "within" if found.high <= limit else "beyond" if found.low > limit else "undecided"

    @property
    def top1_within(self) -> Within:
        """Whether the decided share is within its limit; there is none where the reference is nowhere decided."""
        found, limit = self.decided_estimate, self.min_top1
        if limit is None or found is None:
            return "no limit"
        if self._by_value(limit, 1.0):
            return "within" if found.value >= limit else "beyond"
        assert found.low is not None and found.high is not None, "Wilson's interval has both ends"
        return "within" if found.low >= limit else "beyond" if found.high < limit else "undecided"

    def _by_value(self, limit: float, perfect: float) -> bool:
        """Whether a limit holds for the value: always where it leaves no room, which no interval could clear."""
        return self.by_value or limit == perfect

    @property
    def passed(self) -> bool | None:
        """Whether both are within their limits.

        A divergence that is not finite, or of no position, never is, nor what is undecided.
        """
        both = {self.kl_within, self.top1_within}
        if not self.positions or not np.isfinite(self.kl):
            return False
        return None if both == {"no limit"} else both <= {"within", "no limit"}

    @property
    def undecided(self) -> str | None:
        """Why no verdict follows, in words; None where one does."""
        both = {self.kl_within, self.top1_within}
        if "undecided" not in both or "beyond" in both:
            return None
        counted = f"{number(self.positions)} positions, {number(self.decided_positions)} of them decided,"
        return f"{counted} are too few to tell on which side of the limit it lies"

    @property
    def finite_kl(self) -> float | None:
        """The divergence, None where it is not finite."""
        return self.kl if np.isfinite(self.kl) else None

    def counted(self, cases: int) -> str:
        """On how much it was measured, in words."""
        return f"{number(cases)} cases, {number(self.positions)} answer positions"

    def rows(self, leg: str) -> tuple[Row, Row, Row]:
        """The rows of the leg that it belongs to."""
        kl = at_most(leg, "mean KL, nats", self.kl, self.max_kl)
        label = f"top-1 agreement at {number(self.decided_positions)} decided positions"
        decided = at_least(leg, label, self.decided_agreement, self.min_top1, lost="decided top-1 changed")
        everywhere = at_least(leg, "top-1 agreement", self.top1_agreement, None, lost="top-1 changed")
        low, high = self.kl_estimate.low, self.kl_estimate.high
        between = "" if low is None else f" (90 %: {number(low)} … {number(high)})"
        share = interval(self.decided_estimate, 1, level=90)
        return (
            replace(kl, value=kl.value + between, beyond=self.kl_within in NO_PASS),
            replace(decided, value=decided.value + share, beyond=self.top1_within in NO_PASS),
            replace(everywhere, value=everywhere.value + interval(self.top1_estimate, 1, level=90)),
        )

    def figures(self, prefix: str) -> Mapping[str, float | None]:
        """What a requirement may name: the values, and the ends of their intervals that limits are held to."""
        decided = self.decided_estimate
        return {
            f"{prefix}kl": self.finite_kl,
            f"{prefix}kl.high": self.kl_estimate.high,
            f"{prefix}top1": self.top1_agreement,
            f"{prefix}top1.low": self.top1_estimate.low,
            f"{prefix}decided": self.decided_agreement,
            f"{prefix}decided.low": None if decided is None else decided.low,
        }

    def to_json(self, cases: int) -> dict[str, object]:
        """As it stands in ``parity.json``, where answer positions are called ``steps``."""
        kl, top1, decided = self.kl_estimate, self.top1_estimate, self.decided_estimate
        return {
            "kl": self.finite_kl,
            "kl_interval": [kl.low, kl.high],
            "top1_agreement": self.top1_agreement,
            "top1_interval": [top1.low, top1.high],
            "decided_agreement": self.decided_agreement,
            "decided_interval": None if decided is None else [decided.low, decided.high],
            "decided_steps": self.decided_positions,
            "limits": {"kl": self.max_kl, "decided_agreement": self.min_top1},
            "undecided": self.undecided,
            "cases": cases,
            "steps": self.positions,
        }


def divergence(
    cases: Sequence[Case],
    reference: Sequence[Float32],
    other: Sequence[Float32],
    max_kl: float | None,
    min_top1: float | None,
    *,
    by_value: bool = False,
) -> Divergence:
    """The divergence of ``other`` from ``reference``, logits along every case's path."""
    pairs = [
        (left[: case.answer_positions], right[: case.answer_positions])
        for case, left, right in zip(cases, reference, other, strict=True)
    ]
    kl = clustered_mean([kl_rows(left, right) for left, right in pairs])
    same = np.concatenate([same_best(left, right) for left, right in pairs])
    top1 = proportion(same, z=Z_90)
    assert kl is not None and top1 is not None, "there is at least one case"
    return Divergence(
        kl_estimate=kl,
        top1_estimate=top1,
        decided_estimate=proportion(same[np.concatenate([decided(left) for left, _ in pairs])], z=Z_90),
        max_kl=max_kl,
        min_top1=min_top1,
        by_value=by_value,
    )


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
    def undecided(self) -> str | None:
        """Why no verdict follows; None where one does."""
        return self.divergence.undecided if self.codes_identical else None

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        rows = self.divergence.rows(self.name)
        label = f"integer codes unchanged by folding, {number(len(self.codes))} matrices"
        return (*rows, holds(label, self.codes_identical)) if self.codes else rows

    def figures(self) -> Mapping[str, float | None]:
        return self.divergence.figures("")

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
    *,
    by_value: bool = False,
) -> QuantizationLeg:
    """The quantization leg of logits on float weights, and of the quantized graph's on strict kernels.

    ``codes`` and ``by_value`` are as in the records.
    """
    found = divergence(cases, plain, strict, limits.max_kl, limits.min_top1_agreement, by_value=by_value)
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
    def undecided(self) -> str | None:
        """Why no verdict follows; None where one does."""
        return self.divergence.undecided

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        return self.divergence.rows(self.name)

    def figures(self) -> Mapping[str, float | None]:
        return self.divergence.figures("runtime.")

    def to_json(self) -> dict[str, object]:
        return {**self.divergence.to_json(self.cases), "passed": self.passed}


def runtime_leg(
    cases: Sequence[Case],
    strict: Sequence[Float32],
    shipped: Sequence[Float32],
    limits: ParityLimits,
    *,
    by_value: bool = False,
) -> RuntimeLeg:
    """The runtime leg of the same graphs' logits on strict kernels and as they ship."""
    found = divergence(
        cases,
        strict,
        shipped,
        limits.runtime_max_kl,
        limits.runtime_min_top1_agreement,
        by_value=by_value,
    )
    return RuntimeLeg(divergence=found, cases=len(cases))
