"""How logits are compared; light enough for a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .records import Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestError:
    """The largest error that was seen, in what ``metric`` says, against its limit.

    ``value`` is infinite where something can't be compared, or NaN; neither is within any limit.
    """

    metric: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is within the limit."""
        return self.value <= self.limit

    @property
    def finite(self) -> float | None:
        """The value, None where it is not finite."""
        return self.value if np.isfinite(self.value) else None

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``, where a value that is not finite is null."""
        return {"metric": self.metric, "value": self.finite, "limit": self.limit}


def relative_error(reference: Float32, other: Float32) -> float:
    """max |Δlogit| / max |logit| of the reference; infinite where ``other`` is not finite."""
    if not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(other - reference).max() / np.abs(reference).max())
