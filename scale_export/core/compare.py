"""How logits are compared; light enough for a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from .records import Float32

Leg = dict[str, Any]
"""One comparison as it stands in ``parity.json``: its metrics, ``limit``, ``cases`` and ``passed``."""


def relative_error(reference: Float32, other: Float32) -> float:
    """max |Δlogit| / max |logit| of the reference; infinite where ``other`` is not finite."""
    if not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(other - reference).max() / np.abs(reference).max())
