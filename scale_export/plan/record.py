"""A decided export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scale_export.coefficients.file import Coefficients
from scale_export.core.records import TowerInput
from scale_export.core.words import INTEGER, FloatType, FoldMode, Precision
from scale_export.model.base import BaseModel
from scale_export.model.blocks import Bits
from scale_export.quantize import CalibrationOptions

from .targets import Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decided export.

    ``decisions`` says, sentence by sentence, what was chosen and why; the report and ``--dry-run`` show it.
    ``tower_inputs`` are those of one tile as the model's own processor makes it, or of the largest picture;
    ``prefill_tokens`` is how many tokens Core ML's function ``prefill`` takes at once. ``block_size`` is 0 on a target
    that quantizes nothing, and of w8a8, which has a scale for each output channel. ``quantizer`` is None for float
    weights; ``calibration`` is what it is calibrated on, if it is, and ``questions`` what it would be, which a search
    under a budget measures on; ``other_bits`` names the matrices whose bits are not the precision's.
    """

    base: BaseModel
    coefficients: Coefficients
    target: Target
    precision: Precision
    vision_precision: Precision
    block_size: int
    context_length: int
    tower_inputs: Mapping[str, TowerInput]
    prefill_tokens: int | None
    fold: FoldMode
    decisions: tuple[str, ...]
    quantizer: str | None = None
    calibration: CalibrationOptions | None = None
    calibration_cache: Path | None = None
    questions: CalibrationOptions | None = None
    other_bits: Mapping[str, Bits] = field(default_factory=dict)

    @property
    def bits(self) -> Bits:
        """Of every quantized matrix but ``other_bits``."""
        return 4 if self.precision == "int4" else 8

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.precision in INTEGER

    @property
    def static(self) -> bool:
        """Whether the inputs of products are integers too, by scales that calibration fixed."""
        return self.precision == "w8a8"

    @property
    def float_types(self) -> tuple[FloatType, FloatType]:
        """What the decoder computes in, and keeps in its cache; float weights decide for themselves."""
        return float_types(self.precision, self.target)


def float_types(precision: Precision, target: Target) -> tuple[FloatType, FloatType]:
    """What a decoder of that weight precision computes in on a target, and keeps in its cache.

    Between its integer products, w8a8 computes in float32 on every target.
    """
    match precision:
        case "float32" | "float16" as own:
            return own, own
        case "w8a8":
            return "float32", "float32"
        case _:
            assert target.activations and target.kv_cache, "targets with graphs state them"
            return target.activations, target.kv_cache
