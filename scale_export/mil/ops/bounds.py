"""How many elements an operation makes at most, known from its arguments before it runs.

So a program of a few bytes that asks for the whole memory is refused with a sentence. An operation that is not listed
makes no more than its arguments, broadcast against one another, have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import Any

from scale_export.core.records import Array

from .linear import spatial_padding
from .registry import Arrays, Ints

Bound = Callable[..., int]
"""An operation's arguments by name → elements."""

BOUNDS: dict[str, Bound] = {}
"""Operation type → the bound of one that can make more than its arguments have."""


def elements_of(type: str) -> Bound:
    """The bound of an operation."""
    return BOUNDS.get(type, _broadcast)


def _bound(function: Bound) -> Bound:
    BOUNDS[function.__name__.removeprefix("_")] = function
    return function


def _broadcast(**arguments: object) -> int:
    return _broadcast_elements(value.shape for value in arguments.values() if hasattr(value, "shape"))


def _broadcast_elements(shapes: Iterable[Ints]) -> int:
    sizes = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return math.prod(max(at) for at in sizes)


@_bound
def _fill(shape: Ints, **_: Any) -> int:
    return math.prod(shape)


@_bound
def _range_1d(end: Array, start: Array, step: Array) -> int:
    return max(0, math.ceil((float(end) - float(start)) / float(step)))


@_bound
def _tile(x: Array, reps: Ints) -> int:
    return math.prod(size * times for size, times in zip(x.shape, reps, strict=True))


@_bound
def _one_hot(indices: Array, one_hot_vector_size: int, **_: Any) -> int:
    return indices.size * one_hot_vector_size


@_bound
def _non_zero(x: Array) -> int:
    return x.size * x.ndim


@_bound
def _pad(x: Array, pad: Ints, **_: Any) -> int:
    kept = x.ndim - len(pad) // 2
    last = zip(x.shape[kept:], pad[::2], pad[1::2], strict=True)
    return int(math.prod(x.shape[:kept]) * math.prod(size + before + after for size, before, after in last))


@_bound
def _sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> int:
    length = x.shape[axis]
    return int(x.size // max(length, 1) * ((length - size) // stride + 1) * size)


def _joined(values: Arrays, **_: Any) -> int:
    return sum(value.size for value in values)


BOUNDS |= {"concat": _joined, "stack": _joined}


@_bound
def _gather(x: Array, indices: Array, axis: int = 0, batch_dims: int = 0, **_: Any) -> int:
    return int(
        x.size // max(x.shape[axis], 1) * (indices.size // max(math.prod(indices.shape[:batch_dims]), 1))
    )


@_bound
def _gather_nd(x: Array, indices: Array, batch_dims: int = 0, **_: Any) -> int:
    return math.prod(indices.shape[:-1]) * math.prod(x.shape[batch_dims + indices.shape[-1] :])


@_bound
def _linear(x: Array, weight: Array, **_: Any) -> int:
    return int(x.size // max(x.shape[-1], 1) * len(weight))


@_bound
def _matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> int:
    rows = x.shape[-1 if transpose_x else -2] if x.ndim > 1 else 1
    columns = y.shape[-2 if transpose_y else -1] if y.ndim > 1 else 1
    return int(_broadcast_elements((x.shape[:-2], y.shape[:-2])) * rows * columns)


@_bound
def _einsum(values: Arrays, equation: str) -> int:
    given, _, made = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    sizes = {axis: size for term, v in zip(terms, values, strict=True) for axis, size in zip(term, v.shape)}  # noqa: B905
    return math.prod(sizes.get(axis, 1) for axis in made)


@_bound
def _scaled_dot_product_attention(query: Array, key: Array, value: Array, **_: Any) -> int:
    lead = _broadcast_elements((query.shape[:-2], key.shape[:-2], value.shape[:-2]))
    return int(lead * query.shape[-2] * max(key.shape[-2], value.shape[-1]))


@_bound
def _conv(
    x: Array,
    weight: Array,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints = (),
    dilations: Ints | None = None,
    groups: int = 1,
    **_: Any,
) -> int:
    outputs, _channels, *kernel = weight.shape
    once = (1,) * len(kernel)
    strides, dilations = strides or once, dilations or once
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    padded = _padded(x, span, strides, pad_type, pad)
    positions = math.prod((n - k) // step + 1 for n, k, step in zip(padded, span, strides, strict=True))
    columns = x.shape[1] * math.prod(kernel)
    return int(len(x) * max(x.shape[1] * math.prod(padded), positions * max(columns, outputs)))


def _padded(x: Array, span: Ints, strides: Ints, pad_type: str, pad: Ints) -> list[int]:
    """The sizes of ``x [N, C, *sizes]`` with its padding."""
    padding = spatial_padding(pad_type, pad, x.shape[2:], span, strides)
    return [before + n + after for n, (before, after) in zip(x.shape[2:], padding, strict=True)]


def _pooled(
    x: Array, kernel_sizes: Ints, pad_type: str, strides: Ints | None = None, pad: Ints = (), **_: Any
) -> int:
    strides = strides or (1,) * len(kernel_sizes)
    padded = _padded(x, kernel_sizes, strides, pad_type, pad)
    return math.prod(x.shape[:2]) * math.prod(n + step for n, step in zip(padded, strides, strict=True))


BOUNDS |= {"max_pool": _pooled, "avg_pool": _pooled}


def _to_size(x: Array, target_size_height: int = 1, target_size_width: int = 1, **_: Any) -> int:
    height, width = x.shape[-2:]
    return int(math.prod(x.shape[:-2]) * max(height, target_size_height) * max(width, target_size_width))


def _by_factor(x: Array, scale_factor_height: float = 1, scale_factor_width: float = 1, **_: Any) -> int:
    height, width = x.shape[-2:]
    return _to_size(x, int(height * scale_factor_height), int(width * scale_factor_width))


BOUNDS |= {
    "resize_bilinear": _to_size,
    "resize_nearest_neighbor": _to_size,
    "upsample_bilinear": _by_factor,
    "upsample_nearest_neighbor": _by_factor,
}


@_bound
def _resize(x: Array, shape: Ints, resized_dims: int, **_: Any) -> int:
    kept = x.ndim - resized_dims
    largest = (max(size, target) for size, target in zip(x.shape[kept:], shape[-resized_dims:], strict=True))
    return int(math.prod(x.shape[:kept]) * math.prod(largest))


@_bound
def _constexpr_lut_to_dense(indices: Array, lut: Array, shape: Ints | None = None, **_: Any) -> int:
    return math.prod(shape) if shape is not None else indices.size * lut.shape[-1]


@_bound
def _constexpr_sparse_to_dense(mask: Array, shape: Ints | None = None, **_: Any) -> int:
    return math.prod(shape) if shape is not None else mask.size


@_bound
def _constexpr_lut_to_sparse(indices_mask: Array, lut: Array, **_: Any) -> int:
    return int(indices_mask.size * lut.shape[-1])


@_bound
def _constexpr_sparse_blockwise_shift_scale(data_mask: Array, **_: Any) -> int:
    return data_mask.size
