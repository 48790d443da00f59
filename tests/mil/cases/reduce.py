"""Reductions, cumulative sums and orderings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .table import X, case, floats, ints, uniform

Z = uniform(0.5, 2, 2, 3, 4)
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_l1_norm": lambda x, *how: x.abs().sum(*how),
    "reduce_l2_norm": lambda x, *how: x.square().sum(*how).sqrt(),
    "reduce_log_sum": lambda x, *how: x.sum(*how).log(),
    "reduce_log_sum_exp": lambda x, *how: x.logsumexp(*how),
    "reduce_max": lambda x, *how: x.amax(*how),
    "reduce_mean": lambda x, *how: x.mean(*how),
    "reduce_min": lambda x, *how: x.amin(*how),
    "reduce_prod": lambda x, axes, keep: torch.tensor(x.numpy().prod(axis=axes, keepdims=keep)),
    "reduce_sum": lambda x, *how: x.sum(*how),
    "reduce_sum_square": lambda x, *how: x.square().sum(*how),
}
for name, function in REDUCTIONS.items():
    x = Z if "log_sum" in name and not name.endswith("exp") else X
    case(name, lambda x, f=function: f(x, (0, 1, 2), False), x=x)
    case(name, lambda x, axes, f=function: f(x, (0, 2), False), x=x, axes=(0, -1))
    case(name, lambda x, axes, keep_dims, f=function: f(x, (1,), True), x=x, axes=(1,), keep_dims=True)
for name, function in (("reduce_argmax", torch.argmax), ("reduce_argmin", torch.argmin)):
    case(name, lambda x, f=function: f(x, -1).int(), x=X)
    case(name, lambda x, axis, keep_dims, f=function: f(x, 1, True).int(), x=X, axis=1, keep_dims=True)
    case(name, lambda x, axis, f=function: f(x, 0).int(), x=floats([1, 2, 1], [1, 1, 2]), axis=0)
case("cumsum", lambda x: x.cumsum(0), x=X)
case("cumsum", lambda x, axis: x.cumsum(1), x=X, axis=1)
case("cumsum", lambda x, axis, exclusive: x.cumsum(-1) - x, x=X, axis=-1, exclusive=True)
case("cumsum", lambda x, axis, reverse: x.flip(1).cumsum(1).flip(1), x=X, axis=1, reverse=True)
case(
    "cumsum",
    lambda x, axis, exclusive, reverse: x.flip(1).cumsum(1).flip(1) - x,
    x=X,
    axis=1,
    exclusive=True,
    reverse=True,
)
TIES = floats([3, 1, 3, 2, 1], [2, 2, 5, 0, 5])
case("argsort", lambda x: torch.argsort(x, dim=-1, descending=True, stable=True).int(), x=TIES)
case(
    "argsort",
    lambda x, axis, ascending: torch.argsort(x, dim=0, stable=True).int(),
    x=TIES,
    axis=0,
    ascending=True,
)
case("argsort", ints(3, 0, 1, 2), x=np.array([7, 5, 0, 200], np.uint8))


def top(x: Any, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
    order = torch.argsort(x, dim=axis, descending=largest, stable=True).narrow(axis, 0, k)
    return x.gather(axis, order), order.int()


case("topk", lambda x: top(x, 1, -1, True), x=X)
case("topk", lambda x, k: top(x, 3, -1, True), x=TIES, k=3)
case("topk", lambda x, k, axis, ascending: top(x, 1, 0, False), x=TIES, k=1, axis=0, ascending=True)
case("topk", lambda x, k, axis: top(x, 2, 0, True), x=TIES, k=-1, axis=0)
case("topk", lambda x, k, return_indices: top(x, 2, -1, True)[:1], x=TIES, k=2, return_indices=False)
