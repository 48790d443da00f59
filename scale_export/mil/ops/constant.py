"""Compressed constants (``constexpr_*``), and linear quantization of values."""

from __future__ import annotations

import math

import numpy as np

from scale_export.core.records import Array
from scale_export.mil.dtypes import BY_MIL, BY_NAME

from .registry import Ints, op


def _per_block(parameter: Array) -> Array:
    """``[groups, ...]`` → ``[groups, 1, ...]``, to broadcast over data in blocks."""
    return np.expand_dims(parameter, tuple(range(1, 2 * parameter.ndim, 2)))


def _along(parameter: Array, rank: int, axis: int) -> Array:
    """A vector, or a scalar that is the same everywhere, shaped to lie along ``axis``."""
    return parameter.reshape([parameter.size if i == axis % rank else 1 for i in range(rank)])


@op
def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """A constant in another type."""
    return source_val.astype(BY_MIL[output_dtype].held)


@op
def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    """scale · (data − zero point), per tensor or along ``axis``."""
    return dequantize(quantized_data, scale, zero_point, axis)


@op
def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale · (data − offset), with one scale and offset per block of ``data``."""
    pairs = [(groups, size // groups) for size, groups in zip(data.shape, scale.shape, strict=True)]
    blocks = data.astype(np.float32).reshape([size for pair in pairs for size in pair])
    if offset is not None:
        blocks -= _per_block(offset)
    return (blocks * _per_block(scale)).reshape(data.shape)


@op
def constexpr_lut_to_dense(
    indices: Array, lut: Array, vector_axis: int | None = None, shape: Ints | None = None
) -> Array:
    """Entries of look-up tables, one table per group; vectors of entries lie along ``vector_axis``."""
    if shape is not None:  # iOS 16: one table, indices packed
        codes = BY_NAME[f"uint{int(math.log2(lut.size))}"].decode(indices)
        return lut[codes[: math.prod(shape)]].reshape(shape)
    groups = (
        np.arange(size) // (size // groups) for size, groups in zip(indices.shape, lut.shape, strict=False)
    )
    vectors = lut[(*np.ix_(*groups), indices)]
    if vector_axis is None:
        return np.reshape(vectors, indices.shape)
    axis = vector_axis % indices.ndim
    sizes = [size * lut.shape[-1] if i == axis else size for i, size in enumerate(indices.shape)]
    dense: Array = np.moveaxis(vectors, -1, axis + 1).reshape(sizes)
    return dense


@op
def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Ints | None = None) -> Array:
    """Values where ``mask`` is 1, zeros elsewhere."""
    if shape is not None:  # iOS 16: mask packed
        mask = BY_NAME["uint1"].decode(mask)[: math.prod(shape)].reshape(shape)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask == 1] = nonzero_data
    return dense


@op
def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """The mask and the values of a sparse tensor whose values are indices of look-up tables."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], vector_axis)
    return mask, constexpr_lut_to_dense(indices, lut, vector_axis)[mask == 1]


@op
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask and the values of a sparse tensor that is quantized in blocks."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    return data_mask, constexpr_blockwise_shift_scale(data, scale, offset)[data_mask == 1]


@op
def dequantize(input: Array, scale: Array, zero_point: Array | None = None, axis: int = 0) -> Array:
    """scale · (input − zero point), per tensor or along ``axis``."""
    values = input.astype(np.float32)
    if zero_point is not None:
        values -= _along(zero_point, input.ndim, axis)
    return values * _along(scale, input.ndim, axis)


@op
def quantize(
    input: Array, scale: Array, output_dtype: str, zero_point: Array | None = None, axis: int = 0
) -> Array:
    """round(input / scale) + zero point, within the limits of ``output_dtype``."""
    values = np.rint(input / _along(scale, input.ndim, axis))
    if zero_point is not None:
        values += _along(zero_point, input.ndim, axis)
    limits = np.iinfo(output_dtype)
    return np.clip(values, limits.min, limits.max).astype(output_dtype)
