"""What every quantization method offers, and the calibration statistics that it may use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from scale_export.core.defaults import CALIBRATION_QUESTIONS, WEIGHTING
from scale_export.core.records import Float32
from scale_export.core.words import BLOCKWISE, Precision, Weighting
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.model.weights import DecoderWeights

from .sources import parse_source


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments E[x xᵀ] of one matrix's inputs over calibration tokens: float32 ``[in, in]``, symmetric."""

    matrix: Float32

    @property
    def diagonal(self) -> Float32:
        """E[x²] of each input channel, ``[in]``."""
        return np.ascontiguousarray(np.diagonal(self.matrix))

    def divided(self, columns: Float32) -> Moments:
        """The moments of x / ``columns [in]``."""
        return Moments(self.matrix / np.outer(columns, columns))

    def output_error(self, error: Float32) -> float:
        """tr(E H Eᵀ), the expected squared error of the products of a matrix that is off by ``error [out, in]``."""
        return float(np.einsum("oi,oi->", error @ self.matrix, error, dtype=np.float64))


class Statistics(Protocol):
    """Calibration statistics by the portable name of a matrix."""

    def moments(self, name: str) -> Moments | None:
        """Of that matrix's inputs; None where nothing was collected, as for the embedding."""
        ...

    def peaks(self, name: str) -> Float32 | None:
        """max |x| of each of its input channels, ``[in]``; None as above."""
        ...


class NoStatistics:
    """Nothing was collected."""

    def moments(self, name: str) -> Moments | None:
        return None

    def peaks(self, name: str) -> Float32 | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What statistics are collected on.

    Attributes:
        source: what ``sources.parse_source`` takes: a question set, text or what the model writes itself.
        limit: how many of its examples at the most.
        weighting: what a token counts for. ``uniform``: all the same; ``last``: the positions that predict the
            answer together as much as all others of their question; ``image``: the image tokens likewise.
        pictures: whether the questions keep their pictures.
    """

    source: str
    limit: int = CALIBRATION_QUESTIONS
    weighting: Weighting = WEIGHTING
    pictures: bool = True

    def __str__(self) -> str:
        words = parse_source(self.source).words(self.limit, pictures=self.pictures)
        return f"{words}, {self.weighting} weighting"


Calibration = Literal["unused", "optional", "required"]


class Method(ABC):
    """One way to choose block scales and integer codes for a matrix.

    Codes may depend on the base weights and on calibration, never on where scalars are folded. Of ``w8a8`` a method
    prepares the weights only: their codes are the nearest.
    """

    calibration: Calibration
    precisions: tuple[Precision, ...] = BLOCKWISE
    scales_columns: bool = False
    """Whether ``prepare`` gives matrices other columns, so that a tied output head is no longer the table."""

    def prepare(
        self, weights: DecoderWeights, statistics: Statistics, bits: Bits, block_size: int
    ) -> tuple[DecoderWeights, Statistics]:
        """Weights that compute the same function and round better, and their statistics; unchanged by default."""
        return weights, statistics

    @abstractmethod
    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        """Quantize ``weight [out, in]`` symmetrically in blocks along the input dimension."""
