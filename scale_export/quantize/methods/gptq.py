"""GPTQ (Frantar et al., 2022): column by column, each rounding error is made up for by the columns after it.

The columns stay in their order (no act-order), since blocks and heads are contiguous columns. A block's scales are
searched when it is reached, on weights that already carry the corrections, and stay fixed within it. Without moments
the Hessian is the identity, nothing can be made up for, and the method is ``mse``: so for the embedding table.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scale_export.core.records import Float32
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.quantize.grid import blocked, channel_weights, packed, round_codes, search_scales
from scale_export.quantize.method import Method, Moments

from .mse import METHOD as MSE

DAMPING = 0.01
"""What is added to the Hessian's diagonal, as a share of its mean."""


class Gptq(Method):
    """Error feedback along the input columns."""

    calibration = "required"

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        if moments is None or not moments.matrix.any():
            return MSE.quantize(weight, bits, block_size)
        left = blocked(weight, block_size).flatten(1)
        feedback = error_feedback(moments.matrix, left.shape[1])
        weights = channel_weights(moments.diagonal, weight.shape[1], block_size)
        codes, scales = [], []
        for block, start in enumerate(range(0, left.shape[1], block_size)):
            stop = start + block_size
            part = left[:, start:stop]
            scale = search_scales(part.unsqueeze(1), weights[block : block + 1], bits)
            found, errors = _round_block(part, scale, feedback[start:stop, start:stop], bits)
            left[:, stop:] -= errors @ feedback[start:stop, stop:]
            codes.append(found)
            scales.append(scale)
        return packed(torch.stack(codes, dim=1), torch.cat(scales, dim=1), bits, weight.shape[1])


def error_feedback(hessian: Float32, width: int) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, UᵀU = H⁻¹, float32 ``[width, width]``.

    Worked out in float64; the columns that fill up the last block have no inputs and no say.
    """
    known = hessian.shape[0]
    full = np.zeros((width, width))
    full[:known, :known] = hessian
    damping = DAMPING * np.trace(full) / known
    full[np.arange(width), np.arange(width)] += damping
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(full)))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _round_block(part: Tensor, scale: Tensor, feedback: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes ``[R, S]`` of one block at ``scale [R, 1]``, and the errors that later columns make up for."""
    part = part.clone()
    codes, errors = torch.empty_like(part), torch.empty_like(part)
    for column in range(part.shape[1]):
        code = round_codes(part[:, column, None, None], scale, bits)[:, 0]
        error = (part[:, column, None] - code * scale) / feedback[column, column]
        part[:, column:] -= error * feedback[column, column:]
        codes[:, column : column + 1], errors[:, column : column + 1] = code, error
    return codes, errors


METHOD = Gptq()
