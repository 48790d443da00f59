"""GPTQ (Frantar et al., 2022): column by column, each rounding error is made up for by the columns after it.

The columns of large inputs are rounded first, while there are most others to make up for them (act-order), as far as
blocks allow: a block is rounded as a whole, blocks by their mean E[x²], and the columns of a block by their own. Codes
lie in the matrix's order whatever the order of rounding. A block's scales are searched when it is reached, on weights
that already carry the corrections, and stay fixed within it. Without moments the Hessian is the identity, nothing can
be made up for, and the method is ``mse``: so for the embedding table.
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

DAMPING = 0.05
"""What is added to the Hessian's diagonal, as a share of its mean."""


class Gptq(Method):
    """Error feedback along the input columns."""

    calibration = "required"

    def quantize(
        self, weight: Float32, bits: Bits, block_size: int, moments: Moments | None = None
    ) -> BlockMatrix:
        if moments is None or not moments.matrix.any():
            return MSE.quantize(weight, bits, block_size)
        blocks = blocked(weight, block_size)
        weights = channel_weights(moments.diagonal, weight.shape[1], block_size)
        first, columns = rounding_order(weights)
        left = blocks.flatten(1)[:, columns]
        feedback = error_feedback(moments.matrix, columns)
        codes, scales = torch.empty_like(left), torch.empty(blocks.shape[:2])
        for place, block in enumerate(first.tolist()):
            start, stop = place * block_size, (place + 1) * block_size
            part, own = left[:, start:stop], columns[start:stop]
            scale = search_scales(part.unsqueeze(1), weights.flatten()[own][None], bits)
            codes[:, own], errors = _round_block(part, scale, feedback[start:stop, start:stop], bits)
            left[:, stop:] -= errors @ feedback[start:stop, stop:]
            scales[:, block] = scale[:, 0]
        return packed(codes.view_as(blocks), scales, bits, weight.shape[1])


def rounding_order(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks ``[B]`` and all columns ``[B · S]`` in the order of rounding, from what columns count for, ``[B, S]``."""
    first = weights.mean(-1).argsort(dim=-1, descending=True, stable=True)
    inside = weights.argsort(dim=-1, descending=True, stable=True)
    size = weights.shape[1]
    return first, (first[:, None] * size + inside[first]).flatten()


def error_feedback(hessian: Float32, columns: Tensor) -> Tensor:
    """The upper Cholesky factor U of the damped Hessian's inverse, UᵀU = H⁻¹, float32 ``[width, width]``.

    Rows and columns are in the order of ``columns [width]``. Worked out in float64; the columns that fill up the last
    block have no inputs and no say.
    """
    known, width = hessian.shape[0], len(columns)
    full = np.zeros((width, width))
    full[:known, :known] = hessian
    damping = DAMPING * np.trace(full) / known
    full[np.arange(width), np.arange(width)] += damping
    order = columns.numpy()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(full[np.ix_(order, order)])))
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
