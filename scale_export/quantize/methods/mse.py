"""Scales searched for the least squared error; with calibration, errors count as their input channel is large.

The weighting is that of llama.cpp's importance matrices: E[x²] of a channel, the diagonal of E[x xᵀ].
"""

from __future__ import annotations

from scale_export.core.records import Float32
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.quantize.grid import blocked, channel_weights, rounded, search_scales
from scale_export.quantize.method import Method, Moments


class Mse(Method):
    """The best of clipped candidates in each block."""

    calibration = "optional"

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        blocks, width = blocked(weight, block_size), weight.shape[1]
        weights = channel_weights(None if moments is None else moments.diagonal, width, block_size)
        return rounded(blocks, search_scales(blocks, weights, bits), bits, width)


METHOD = Mse()
