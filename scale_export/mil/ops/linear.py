"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math

import numpy as np

from scale_export.core.records import Array

from .registry import Arrays, Ints, op


@op
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x · weightᵀ + bias: ``[..., in]`` → ``[..., out]``, ``weight [out, in]``."""
    y: Array = x @ weight.T
    return y if bias is None else y + bias


@op
def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    """Matrix products over broadcast leading axes."""
    result: Array = np.matmul(
        x.swapaxes(-1, -2) if transpose_x else x, y.swapaxes(-1, -2) if transpose_y else y
    )
    return result


@op
def einsum(values: Arrays, equation: str) -> Array:
    """Products and sums over named axes."""
    result: Array = np.einsum(equation, *values, optimize=True)
    return result


def spatial_padding(
    pad_type: str, pad: Ints, sizes: Ints, kernel: Ints, strides: Ints
) -> list[tuple[int, int]]:
    """Elements before and after each spatial axis of ``sizes``; ``kernel`` counts its dilation."""
    if pad_type == "custom":
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type == "valid":
        return [(0, 0) for _ in sizes]
    total = [
        max(0, -(-size // step) * step - size + k - step)
        for size, k, step in zip(sizes, kernel, strides, strict=True)
    ]
    pairs = [(n // 2, n - n // 2) for n in total]
    return pairs if pad_type == "same" else [(after, before) for before, after in pairs]


def _windows(x: Array, kernel: Ints, strides: Ints, dilations: Ints) -> Array:
    """``[N, C, *sizes]`` → a view ``[N, C, *positions, *kernel]``."""
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, span, range(2, x.ndim))  # type: ignore[call-overload]
    keep = (slice(None, None, step) for step in (*strides, *dilations))
    return np.asarray(windows[(slice(None), slice(None), *keep)])


@op
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints = (),
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    """``x [N, C, *sizes]`` with ``weight [out, C / groups, *kernel]`` → ``[N, out, *positions]``."""
    outputs, channels, *kernel = weight.shape
    once = (1,) * len(kernel)
    strides, dilations = strides or once, dilations or once
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    padding = spatial_padding(pad_type, pad, x.shape[2:], span, strides)
    windows = _windows(np.pad(x, [(0, 0), (0, 0), *padding]), tuple(kernel), strides, dilations)
    positions = windows.shape[2 : 2 + len(kernel)]
    taps = math.prod(kernel)
    columns = windows.reshape(len(x), groups, channels, math.prod(positions), taps).swapaxes(-1, -2)
    columns = columns.reshape(len(x), groups, channels * taps, math.prod(positions))
    rows = weight.reshape(groups, outputs // groups, channels * taps)
    y: Array = (rows @ columns).reshape(len(x), outputs, *positions)
    return y if bias is None else y + bias.reshape(bias.shape + once)


def _pool_windows(
    x: Array,
    kernel: Ints,
    strides: Ints | None,
    pad_type: str,
    pad: Ints,
    ceil_mode: bool,
    fill: float,
    beyond: float,
) -> Array:
    """Windows ``[N, C, *positions, *kernel]`` of ``x``: padding holds ``fill``, what ``ceil_mode`` adds ``beyond``."""
    once = (1,) * len(kernel)
    strides = strides or once
    padding = spatial_padding(pad_type, pad, x.shape[2:], kernel, strides)
    positions = []
    for (before, after), size, k, step in zip(padding, x.shape[2:], kernel, strides, strict=True):
        room = before + size + after - k
        whole = room // step + 1
        partial = ceil_mode and room % step > 0 and whole * step < before + size
        positions.append(slice(whole + partial))
    x = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=fill)
    x = np.pad(x, [(0, 0), (0, 0), *((0, step) for step in strides)], constant_values=beyond)
    windows = _windows(x, kernel, strides, once)
    return np.asarray(windows[(slice(None), slice(None), *positions)])


@op
def max_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints = (),
    ceil_mode: bool = False,
) -> Array:
    """The largest element of each window of ``[N, C, *sizes]``."""
    windows = _pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, -np.inf, -np.inf)
    y: Array = windows.max(tuple(range(x.ndim, windows.ndim)))
    return y


@op
def avg_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints = (),
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    """The mean of each window of ``[N, C, *sizes]``, with or without the padding in the count."""
    counted = 0 if exclude_padding_from_average else 1
    windows = _pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0, 0)
    ones = _pool_windows(np.ones_like(x), kernel_sizes, strides, pad_type, pad, ceil_mode, counted, 0)
    kernel = tuple(range(x.ndim, windows.ndim))
    y: Array = windows.sum(kernel) / ones.sum(kernel)
    return y
