"""Reductions, cumulative sums and orderings.

Output types are those that the program declares, whatever parameters say; what may be unsorted is sorted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scale_export.core.records import Array

from .registry import REGISTRY, Function, Ints, op

REDUCTIONS: dict[str, Callable[..., Array]] = {
    "reduce_l1_norm": lambda x, **how: np.sum(np.abs(x), **how),
    "reduce_l2_norm": lambda x, **how: np.sqrt(np.sum(np.square(x), **how)),
    "reduce_log_sum": lambda x, **how: np.log(np.sum(x, **how)),
    "reduce_log_sum_exp": np.logaddexp.reduce,
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **how: np.sum(np.square(x), **how),
}


def _reduction(function: Callable[..., Array]) -> Function:
    def reduce(x: Array, axes: Ints | None = None, keep_dims: bool = False) -> Array:
        return function(x, axis=axes, keepdims=keep_dims)

    return reduce


REGISTRY |= {name: _reduction(function) for name, function in REDUCTIONS.items()}


@op
def reduce_argmax(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str | None = None
) -> Array:
    """Where the largest element along ``axis`` is, the first of equals."""
    return np.asarray(np.argmax(x, axis, keepdims=keep_dims))


@op
def reduce_argmin(
    x: Array, axis: int = -1, keep_dims: bool = False, output_dtype: str | None = None
) -> Array:
    """Where the smallest element along ``axis`` is, the first of equals."""
    return np.asarray(np.argmin(x, axis, keepdims=keep_dims))


@op
def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    """Sums up to each element of ``axis``, with itself or without, from either end."""
    if reverse:
        return np.flip(cumsum(np.flip(x, axis), axis, exclusive), axis)
    if exclusive:
        x = np.delete(np.insert(x, 0, 0, axis), -1, axis)
    return np.cumsum(x, axis)


@op
def argsort(x: Array, axis: int = -1, ascending: bool = False) -> Array:
    """The order of the elements along ``axis``, the largest first by default; equals stay in order."""
    return np.argsort(x if ascending else -x.astype(np.float64), axis, stable=True)


@op
def topk(
    x: Array,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool | None = None,
    return_indices: bool = True,
    output_indices_dtype: str | None = None,
) -> tuple[Array, ...]:
    """The ``k`` largest (or smallest) elements along ``axis`` in order, −1 for all, and their indices."""
    order = argsort(x, axis, ascending)
    order = np.take(order, np.arange(x.shape[axis] if k == -1 else k), axis)
    values = np.take_along_axis(x, order, axis)
    return (values, order) if return_indices else (values,)
