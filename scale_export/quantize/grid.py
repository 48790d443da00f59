"""Symmetric integer grids: rounding to given block scales, and searching scales.

Shapes: R rows, B blocks of S columns. A grid of b bits holds the codes −2^(b−1) … 2^(b−1) − 1 times a scale, which
may be negative: the side that reaches one step further goes where the block's largest weight lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from scale_export.core.records import Float32
from scale_export.model.blocks import Bits, BlockMatrix

CLIPPING = (1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""The candidate scales as shares of the one that just reaches a block's largest weight."""
FLOOR = 0.01
"""What is added to every channel's weight, as a share of the mean: channels that calibration never saw count too."""
_CHUNK = 1 << 21


def blocked(values: Float32, block_size: int) -> Tensor:
    """``[R, in]`` → ``[R, B, S]``, the last block filled up with zeros."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % block_size)))
    blocks: Tensor = torch.from_numpy(np.ascontiguousarray(padded, np.float32)).unflatten(1, (-1, block_size))
    return blocks


def channel_weights(second_moments: Float32 | None, in_features: int, block_size: int) -> Tensor:
    """What a squared error in each column counts for, ``[B, S]``, from E[x²] ``[in]``; all the same without it."""
    if second_moments is None or not second_moments.any():
        second_moments = np.ones(in_features, np.float32)
    floored = second_moments / second_moments.mean() + FLOOR
    return blocked(floored[None].astype(np.float32), block_size)[0]


def reaching_scales(blocks: Tensor, bits: int) -> Tensor:
    """Scales ``[R, B]`` whose far end is each block's largest weight; 0 where a block is all zeros."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return largest / -(2.0 ** (bits - 1))


def round_codes(blocks: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest signed codes to ``blocks [R, B, S]`` at ``scales [R, B]``, as floats; 0 where a scale is 0."""
    top = 2.0 ** (bits - 1)
    inverse = torch.where(scales == 0, 0.0, 1.0 / scales)
    return (blocks * inverse.unsqueeze(-1)).round().clamp(-top, top - 1)


def search_scales(blocks: Tensor, weights: Tensor, bits: int) -> Tensor:
    """Scales ``[R, B]`` with the least squared error, weighted by ``weights [B, S]``, among clipped candidates.

    Each candidate's codes get the scale that fits them best (least squares), as in llama.cpp's ``make_qx_quants``.
    """
    return in_chunks(lambda part: _search(part, weights, bits), blocks)


def _search(blocks: Tensor, weights: Tensor, bits: int) -> Tensor:
    start = reaching_scales(blocks, bits)
    best, least = start, torch.full_like(start, torch.inf)
    weighted = blocks * weights
    energy = (weighted * blocks).sum(-1)
    for share in CLIPPING:
        for sign in (1.0, -1.0):
            codes = round_codes(blocks, start * (sign * share), bits)
            along, norm = (codes * weighted).sum(-1), (codes * codes * weights).sum(-1)
            fitted = torch.where(norm > 0, along / norm, 0.0)
            error = energy - fitted * along  # what is left of the energy once the projection is taken off
            better = error < least
            best, least = torch.where(better, fitted, best), torch.where(better, error, least)
    return best


def in_chunks(function: Callable[[Tensor], Tensor], blocks: Tensor) -> Tensor:
    """``function(blocks)``, some rows at a time: temporary arrays stay small."""
    rows = max(1, _CHUNK // max(1, blocks[0].numel()))
    return torch.cat([function(part) for part in blocks.split(rows)])


def packed(codes: Tensor, scales: Tensor, bits: Bits, in_features: int) -> BlockMatrix:
    """Signed ``codes [R, B, S]`` and ``scales [R, B]`` as they are stored."""
    unsigned = (codes + 2.0 ** (bits - 1)).to(torch.uint8).numpy()
    rows, blocks, size = unsigned.shape
    stored = BlockMatrix.packed(unsigned.reshape(rows, -1), bits).reshape(rows, blocks, -1)
    return BlockMatrix(
        codes=stored, scales=scales.float().numpy(), bits=bits, block_size=size, in_features=in_features
    )


def rounded(blocks: Tensor, scales: Tensor, bits: Bits, in_features: int) -> BlockMatrix:
    """``blocks`` rounded to the nearest code at ``scales``, as stored."""
    codes = torch.cat([round_codes(b, s, bits) for b, s in _pairs(blocks, scales)])
    return packed(codes, scales, bits, in_features)


def symmetric(weight: Float32, bits: Bits, block_size: int) -> BlockMatrix:
    """``weight [out, in]`` rounded to the nearest of ±(2^(b−1) − 1) codes.

    Scales reach each block's largest weight, and are positive: 1 where a block is all zeros.
    """
    blocks, top = blocked(weight, block_size), 2.0 ** (bits - 1) - 1
    largest = blocks.abs().amax(-1)
    return rounded(blocks, torch.where(largest > 0, largest / top, 1.0), bits, weight.shape[1])


def _pairs(blocks: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _CHUNK // max(1, blocks[0].numel()))
    return zip(blocks.split(rows), scales.split(rows), strict=True)
