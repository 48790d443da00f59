"""AWQ (Lin et al., 2023): input channels that matter are enlarged before rounding, and what feeds them is reduced.

How factors are absorbed is ``_equalize``'s. Each group's s = rms(x)^a is the best of a grid over a, by the output error
tr(E H Eᵀ); a = 0, plain scale search, is in the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scale_export.core.records import Float32
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.model.weights import DecoderWeights
from scale_export.quantize.equalize import (
    SPREAD,
    EqualizedStatistics,
    EqualizedWeights,
    centred,
    group_of,
    per_value_channel,
)
from scale_export.quantize.method import Method, Moments, Statistics

from .mse import METHOD as MSE

EXPONENTS = tuple(step / 10 for step in range(11))


class Awq(Method):
    """Channel scaling, then searched scales weighted by the scaled inputs."""

    calibration = "required"
    scales_columns = True

    def prepare(
        self, weights: DecoderWeights, statistics: Statistics, bits: Bits, block_size: int
    ) -> tuple[DecoderWeights, Statistics]:
        search = _Search(weights=weights, statistics=statistics, bits=bits, block_size=block_size)
        equalized = EqualizedWeights(base=weights, search=search)
        return equalized, EqualizedStatistics(statistics, equalized.columns)

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        return MSE.quantize(weight, bits, block_size, moments)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """``search`` of ``EqualizedWeights``."""

    weights: DecoderWeights
    statistics: Statistics
    bits: Bits
    block_size: int

    def __call__(self, name: str) -> Float32:
        moments, spec = self.statistics.moments(name), self.weights.spec
        if moments is None or not moments.matrix.any():
            return np.ones(spec.linears()[name][1], np.float32)
        energy = per_value_channel(name, spec, moments.diagonal.astype(np.float64), reduce=np.mean)
        rms = np.sqrt(np.maximum(energy, energy.max() / SPREAD**2))
        candidates = [centred(rms**exponent) for exponent in EXPONENTS]
        matrices = [self.weights.matrix(member).numpy() for member in group_of(name)]
        losses = [sum(self._loss(m, moments, columns) for m in matrices) for columns in candidates]
        return candidates[int(np.argmin(losses))]

    def _loss(self, weight: Float32, moments: Moments, columns: Float32) -> float:
        """tr(E H Eᵀ) of the weights as they would be computed with."""
        packed = MSE.quantize(weight * columns, self.bits, self.block_size, moments.divided(columns))
        return moments.output_error(packed.dequantize() / columns - weight)


METHOD = Awq()
