"""Resizing of the last two axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Array

from .registry import Ints, op

_GRIDS: dict[str, Callable[[NDArray[np.int64], int, int], Array]] = {
    "STRICT_ALIGN_CORNERS": lambda i, n, m: i * ((n - 1) / max(m - 1, 1)),
    "ALIGN_CORNERS": lambda i, n, m: i * ((n - 1) / (m - 1)) if m > 1 else np.full(1, (n - 1) / 2),
    "DEFAULT": lambda i, n, m: i * (n / m),
    "OFFSET_CORNERS": lambda i, n, m: (i + 0.5) * ((n - 1) / m),
    "UNALIGN_CORNERS": lambda i, n, m: (i + 0.5) * (n / m) - 0.5,
}
"""Sampling mode → where output positions ``i`` of ``m`` lie among ``n`` inputs (from MIL's ``resize_bilinear``)."""


def _linear(x: Array, axis: int, size: int, mode: str) -> Array:
    """``x`` interpolated to ``size`` along a negative ``axis``."""
    length = x.shape[axis]
    grid = np.maximum(_GRIDS[mode](np.arange(size), length, size), 0)
    below = np.floor(grid).astype(np.intp)
    share = (grid - below).astype(np.float32).reshape(size, *[1] * (-1 - axis))
    above = np.minimum(below + 1, length - 1)
    result: Array = np.take(x, below, axis) * (1 - share) + np.take(x, above, axis) * share
    return result


def _nearest(x: Array, axis: int, size: int) -> Array:
    """``x`` at the input positions that the output positions along ``axis`` start at."""
    return np.asarray(np.take(x, np.arange(size) * x.shape[axis] // size, axis))


@op
def resize_bilinear(
    x: Array, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Array:
    """``x`` linearly interpolated to a size; the sampling mode says where its samples lie."""
    return _linear(_linear(x, -2, target_size_height, sampling_mode), -1, target_size_width, sampling_mode)


@op
def resize_nearest_neighbor(x: Array, target_size_height: int, target_size_width: int) -> Array:
    """``x`` resized by repeating or leaving out elements."""
    return _nearest(_nearest(x, -2, target_size_height), -1, target_size_width)


@op
def upsample_bilinear(
    x: Array,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Array:
    """``x`` linearly interpolated to its sizes times the factors, rounded down."""
    height, width = int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width)
    if align_corners:
        return resize_bilinear(x, height, width, "STRICT_ALIGN_CORNERS")
    return resize_bilinear(x, height, width, "DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS")


@op
def upsample_nearest_neighbor(
    x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Array:
    """``x`` resized to its sizes times the factors, rounded down, by repeating elements."""
    height, width = int(x.shape[-2] * scale_factor_height), int(x.shape[-1] * scale_factor_width)
    return resize_nearest_neighbor(x, height, width)


@op
def resize(
    x: Array,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Array:
    """The last ``resized_dims`` axes of ``x`` resized to the last sizes of ``shape``; 0 keeps a size."""
    for axis in range(-resized_dims, 0):
        size = shape[axis] or x.shape[axis]
        x = (
            _linear(x, axis, size, sampling_mode)
            if interpolation_mode == "LINEAR"
            else _nearest(x, axis, size)
        )
    return x
