"""SmoothQuant (Xiao et al., 2022): loud input channels are made quieter and their weights louder, so that one static
scale rounds all channels of a product's input.

How factors are absorbed is ``_equalize``'s. A group's s_j = max|x_j|^α / max|w_j|^(1 − α) is the best over ``ALPHAS``,
or 1 where no smoothing is better, by the expected error of its products with both sides rounded to int8:

    tr(E H Eᵀ) + step² / 12 · ‖W·diag(s)‖²

E is the rounding error of the weights, H = E[x xᵀ], and step the distance of the inputs' codes, whose rounding error is
taken as uniform and independent from channel to channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Float32
from scale_export.core.words import Precision
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
from scale_export.quantize.grid import symmetric
from scale_export.quantize.method import Method, Moments, Statistics
from scale_export.quantize.static import input_step

ALPHAS = tuple(step / 10 for step in range(11))


class SmoothQuant(Method):
    """Channels smoothed, then weights rounded to the nearest."""

    calibration = "required"
    scales_columns = True
    precisions: tuple[Precision, ...] = ("w8a8",)

    def __init__(self, alphas: tuple[float, ...] = ALPHAS) -> None:
        self.alphas = alphas

    def prepare(
        self, weights: DecoderWeights, statistics: Statistics, bits: Bits, block_size: int
    ) -> tuple[DecoderWeights, Statistics]:
        search = _Search(weights=weights, statistics=statistics, alphas=self.alphas)
        equalized = EqualizedWeights(base=weights, search=search)
        return equalized, EqualizedStatistics(statistics, equalized.columns)

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        return symmetric(weight, bits, block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """``search`` of ``EqualizedWeights``."""

    weights: DecoderWeights
    statistics: Statistics
    alphas: tuple[float, ...]

    def __call__(self, name: str) -> Float32:
        spec = self.weights.spec
        ones = np.ones(spec.linears()[name][1], np.float32)
        moments, peaks = self.statistics.moments(name), self.statistics.peaks(name)
        if moments is None or peaks is None or not peaks.any():
            return ones
        matrices = [self.weights.matrix(member).numpy() for member in group_of(name)]
        loudest = np.max([np.abs(m).max(axis=0) for m in matrices], axis=0)
        x, w = (
            _floored(per_value_channel(name, spec, side.astype(np.float64), reduce=np.max))
            for side in (peaks, loudest)
        )
        candidates = [ones] if len(self.alphas) > 1 else []
        candidates += [centred(x**alpha / w ** (1 - alpha)) for alpha in self.alphas]
        losses = [sum(_loss(m, moments, peaks, columns) for m in matrices) for columns in candidates]
        return candidates[int(np.argmin(losses))]


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values, values.max() / SPREAD) if values.any() else np.ones_like(values)


def _loss(weight: Float32, moments: Moments, peaks: Float32, columns: Float32) -> float:
    """The expected squared error of the products, both sides rounded."""
    scaled = weight * columns
    error = symmetric(scaled, 8, scaled.shape[1]).dequantize() / columns - weight
    noise = float(input_step(peaks / columns)) ** 2 / 12
    return moments.output_error(error) + noise * float(np.square(scaled, dtype=np.float64).sum())


METHOD = SmoothQuant()
