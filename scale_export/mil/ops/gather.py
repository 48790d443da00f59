"""Gathering and scattering by indices, which count from zero, negative ones from the end.

``validate_indices`` changes nothing: an index out of bounds is an error here in any case.
"""

from __future__ import annotations

import numpy as np

from scale_export.core.records import Array

from .registry import move, op

_UFUNCS: dict[str, np.ufunc] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@move
def gather(
    x: Array, indices: Array, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None
) -> Array:
    """Slices of ``x`` along ``axis``; the first ``batch_dims`` axes are shared with ``indices``."""
    if batch_dims == 0:
        return np.take(x, indices, axis)
    axis = axis % x.ndim - 1
    return np.stack([gather(row, at, axis, batch_dims - 1) for row, at in zip(x, indices, strict=True)])


@move
def gather_along_axis(x: Array, indices: Array, axis: int = 0, validate_indices: bool | None = None) -> Array:
    """Elements of ``x`` along ``axis``, one per element of ``indices``."""
    return np.take_along_axis(x, indices.astype(np.intp), axis)


@move
def gather_nd(x: Array, indices: Array, batch_dims: int = 0, validate_indices: bool | None = None) -> Array:
    """Slices of ``x`` at the index tuples that lie along the last axis of ``indices``."""
    if batch_dims == 0:
        result: Array = x[tuple(np.moveaxis(indices, -1, 0))]
        return result
    return np.stack([gather_nd(row, at, batch_dims - 1) for row, at in zip(x, indices, strict=True)])


def _scattered(data: Array, index: tuple[Array | slice, ...], updates: Array, mode: str) -> Array:
    """A copy of ``data`` with ``updates`` combined in at ``index``; repeated indices accumulate."""
    result = data.copy()
    if mode == "update":
        result[index] = updates
    else:
        _UFUNCS[mode].at(result, index, updates)
    return result


@op
def scatter(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Array:
    """``data`` with ``updates`` combined in at ``indices`` along ``axis``."""
    return _scattered(data, (slice(None),) * (axis % data.ndim) + (indices,), updates, mode)


@op
def scatter_along_axis(
    data: Array,
    indices: Array,
    updates: Array,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Array:
    """``data`` with each element of ``updates`` combined in at its index along ``axis``."""
    index = list(np.ix_(*map(np.arange, indices.shape)))
    index[axis] = indices
    return _scattered(data, tuple(index), updates, mode)


@op
def scatter_nd(
    data: Array, indices: Array, updates: Array, mode: str = "add", validate_indices: bool | None = None
) -> Array:
    """``data`` with slices combined in at the index tuples along the last axis of ``indices``."""
    return _scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, mode)
