"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math

import numpy as np

from ..dtypes import Array
from .registry import Arrays, Ints, op


@op
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x · weightᵀ + bias: ``[..., in]`` → ``[..., out]``, ``weight [out, in]``."""
    y: Array = (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], len(weight))
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


def _padding(
    pad_type: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints
) -> list[tuple[int, int]]:
    """Elements before and after each spatial axis of ``sizes``; ``kernel`` counts its dilation."""
    if pad_type == "custom" and pad is not None:
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        return [(0, 0)] * len(sizes)
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
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Array:
    """``x [N, C, *sizes]`` with ``weight [out, C / groups, *kernel]`` → ``[N, out, *positions]``."""
    kernel = weight.shape[2:]
    strides, dilations = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    padding = _padding(pad_type, pad, x.shape[2:], span, strides)
    windows = _windows(np.pad(x, [(0, 0), (0, 0), *padding]), kernel, strides, dilations)
    n, positions = len(x), windows.shape[2 : 2 + len(kernel)]
    columns = windows.reshape(n, groups, -1, math.prod(positions), math.prod(kernel))
    columns = columns.swapaxes(2, 3).reshape(n, groups, math.prod(positions), -1)
    rows = weight.reshape(groups, len(weight) // groups, -1)
    y: Array = (rows @ columns.swapaxes(2, 3)).reshape(n, len(weight), *positions)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(kernel))


def _pool_windows(
    x: Array,
    kernel: Ints,
    strides: Ints | None,
    pad_type: str,
    pad: Ints | None,
    ceil_mode: bool,
    fill: float,
    beyond: float,
) -> Array:
    """Windows ``[N, C, *positions, *kernel]`` of ``x``: padding holds ``fill``, what ``ceil_mode`` adds ``beyond``."""
    strides = strides or (1,) * len(kernel)
    padding = _padding(pad_type, pad, x.shape[2:], kernel, strides)
    extra = [(0, 0)] * len(kernel)
    if ceil_mode:
        for axis, ((before, after), size, k, step) in enumerate(
            zip(padding, x.shape[2:], kernel, strides, strict=True)
        ):
            padded = before + size + after
            last = -(-(padded - k) // step) * step
            last -= step if last >= before + size else 0
            extra[axis] = (0, max(0, last + k - padded))
    for widths, value in ((padding, fill), (extra, beyond)):
        x = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=value)
    return _windows(x, kernel, strides, (1,) * len(kernel))


@op
def max_pool(
    x: Array,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
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
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Array:
    """The mean of each window of ``[N, C, *sizes]``, with or without the padding in the count."""
    counted = 0 if exclude_padding_from_average else 1
    windows = _pool_windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode, 0, 0)
    ones = _pool_windows(np.ones_like(x), kernel_sizes, strides, pad_type, pad, ceil_mode, counted, 0)
    kernel = tuple(range(x.ndim, windows.ndim))
    y: Array = np.divide(windows.sum(kernel), ones.sum(kernel))
    return y
