"""What a user may ask of an export beside its coefficients and its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a user may ask beyond the coefficients and the target; None and ``auto`` take the target's choice.

    Attributes:
        calib: question set of calibration; ``auto`` is the one that the coefficients were trained on, ``none`` none.
        calib_limit, calib_weighting, calib_pictures: see ``CalibrationOptions``.
        bits: bits of single matrices, in place of the precision's, or the name of a mix; see ``plan.bits``.
        cache: where statistics are kept; None is the user's own cache folder.
    """

    precision: str | None = None
    fold: str = "auto"
    block_size: int | None = None
    quantizer: str = "auto"
    calib: str = "auto"
    calib_limit: int = 128
    calib_weighting: str = "uniform"
    calib_pictures: bool = True
    bits: Mapping[str, int] | str = field(default_factory=dict)
    cache: Path | None = None
