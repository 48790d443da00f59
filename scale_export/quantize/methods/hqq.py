"""Half-quadratic quantization (Badri and Shaji, 2023), for symmetric blocks and without data.

The error e = W − s·q is fitted under a sparsity-promoting |e|^p with p < 1, so that a few outliers don't set the
scale of the rest: an auxiliary e takes up what shrinkage leaves of the error, and the scale fits W − e. The original
moves a zero point at fixed scales; symmetric blocks have none, so the scale itself moves. Errors are measured in
steps of each block's first scale, which makes the penalty's weight the same for every matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scale_export.core.records import Float32
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.quantize.grid import blocked, in_chunks, reaching_scales, round_codes, rounded
from scale_export.quantize.method import Method, Moments

NORM = 0.7
"""p of |e|^p."""
PENALTY = 4.0
"""The penalty's weight at first: errors below about a fifth of a step shrink to nothing."""
GROWTH = 1.1
ROUNDS = 20


class Hqq(Method):
    """Block scales by alternating between shrunk errors, codes and scales."""

    calibration = "unused"

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        blocks = blocked(weight, block_size)
        start = reaching_scales(blocks, bits)
        unit = torch.where(start == 0, 1.0, start)
        scales = in_chunks(lambda part: _fit(part, bits), blocks / unit.unsqueeze(-1)) * start
        return rounded(blocks, scales, bits, weight.shape[1])


def _fit(blocks: Tensor, bits: int) -> Tensor:
    """Scales ``[R, B]`` of blocks whose first scale is 1; the best of all rounds by mean |e|^p."""
    scales = torch.ones(blocks.shape[:-1])
    best, least = scales, torch.full_like(scales, torch.inf)
    penalty = PENALTY
    for _ in range(ROUNDS + 1):
        codes = round_codes(blocks, scales, bits)
        error = blocks - codes * scales.unsqueeze(-1)
        loss = error.abs().pow(NORM).mean(-1)
        better = loss < least
        best, least = torch.where(better, scales, best), torch.where(better, loss, least)
        sparse = _shrunk(error, penalty)
        norm = (codes * codes).sum(-1)
        scales = torch.where(norm > 0, (codes * (blocks - sparse)).sum(-1) / norm, scales)
        penalty *= GROWTH
    return best


def _shrunk(error: Tensor, penalty: float) -> Tensor:
    """The generalised soft threshold of |e|^p at that weight of the quadratic penalty."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(NORM - 1) / penalty).clamp(min=0)


METHOD = Hqq()
