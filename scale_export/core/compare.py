"""How logits are compared; light enough for a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .records import Float32


def within_limit(value: float, limit: float) -> bool:
    """Whether a finite value is at most a finite limit: NaN and infinity are within none, and hold nothing."""
    return math.isfinite(value) and math.isfinite(limit) and value <= limit


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestError:
    """The largest error that was seen, in what ``metric`` says, against its limit.

    ``value`` is infinite where something can't be compared, or nothing was; that is within no limit.
    """

    metric: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is within the limit."""
        return within_limit(self.value, self.limit)

    @property
    def finite(self) -> float | None:
        """The value, None where it is not finite."""
        return self.value if np.isfinite(self.value) else None

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``, where a value that is not finite is null."""
        return {"metric": self.metric, "value": self.finite, "limit": self.limit}


def relative_error(reference: Float32, other: Float32) -> float:
    """max |Δlogit| / max |logit| of the reference, never NaN.

    Infinite where a side is not finite or holds nothing, or where the reference is zero throughout and the other isn't.
    """
    if not reference.size or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return float("inf")
    away, largest = np.abs(other - reference).max(), np.abs(reference).max()
    if largest == 0:
        return 0.0 if away == 0 else float("inf")
    return float(away / largest)


def worst_of(errors: Sequence[float]) -> float:
    """The largest error; infinite where one is NaN, or where there are none, since nothing was compared."""
    worst = float(np.max(errors)) if errors else float("inf")
    return float("inf") if math.isnan(worst) else worst
