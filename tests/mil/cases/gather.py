"""Gathering and scattering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .table import RANDOM, X, case, integers, ints, normal, uniform

case("gather", lambda x, indices, axis: x[:, indices], x=X, indices=integers(0, 3, 2, 5), axis=-2)
case("gather", lambda x, indices: x[indices], x=X, indices=integers(0, 2, 3))
case("gather", lambda x, indices, axis: x[:, :, 3], x=X, indices=np.int32(3), axis=2)
BATCHED = integers(0, 4, 2, 3, 2)
for axis, batch_dims in ((-1, 2), (2, 1), (-2, 1)):
    rows = BATCHED if batch_dims == 2 else BATCHED[:, 0] % 3
    case(
        "gather",
        np.stack([np.stack([X[b, s][rows[b, s]] for s in range(3)]) for b in range(2)])
        if batch_dims == 2
        else np.stack([np.take(X[b], rows[b], axis % 3 - 1) for b in range(2)]),
        x=X,
        indices=rows,
        axis=axis,
        batch_dims=batch_dims,
    )
case(
    "gather_along_axis",
    lambda x, indices, axis: x.gather(1, indices.long()),
    x=X,
    indices=integers(0, 3, 2, 5, 4),
    axis=1,
)
case(
    "gather_along_axis", lambda x, indices: x.gather(0, indices.long()), x=X, indices=integers(0, 2, 5, 3, 4)
)
case("gather_nd", lambda x, indices: x[indices[..., 0], indices[..., 1]], x=X, indices=integers(0, 2, 5, 2))
case(
    "gather_nd",
    lambda x, indices, batch_dims: torch.stack([x[b][indices[b, :, 0], indices[b, :, 1]] for b in range(2)]),
    x=X,
    indices=integers(0, 3, 2, 5, 2),
    batch_dims=1,
)
DEEP = normal(2, 2, 3, 4)
case(
    "gather_nd", lambda x, indices: x[indices[..., 0], indices[..., 1]], x=X, indices=integers(0, 2, 5, 3, 2)
)
case(
    "gather_nd",
    np.take_along_axis(DEEP, NESTED := integers(0, 3, 2, 2, 5, 1), 2),
    x=DEEP,
    indices=NESTED,
    batch_dims=2,
)

COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
    "update": lambda a, b: b,
}


def scattered(data: np.ndarray, places: list[tuple[Any, ...]], updates: list[float], mode: str) -> np.ndarray:
    data = data.astype(np.float64)
    for place, update in zip(places, updates, strict=True):
        data[place] = COMBINE[mode](data[place], update)
    return data.astype(np.float32)


def scatters(mode: str | None) -> None:
    how = {} if mode is None else {"mode": mode}
    kind = mode or "add"
    for axis in (None, 1, -1):
        along = 0 if axis is None else axis % 3
        at = {} if axis is None else {"axis": axis}
        rows = ints(1, 0) if kind == "update" else ints(1, 0, 1)
        sizes = [len(rows) if i == along else n for i, n in enumerate(X.shape)]
        updates = uniform(0.5, 2, *sizes)
        places = [tuple(rows[p[i]] if i == along else p[i] for i in range(3)) for p in np.ndindex(*sizes)]
        case(
            "scatter",
            scattered(X, places, list(updates.ravel()), kind),
            data=X,
            indices=rows,
            updates=updates,
            **how,
            **at,
        )
        picks = np.argsort(RANDOM.random(X.shape), axis=along).astype(np.int32)
        if kind != "update":
            picks %= X.shape[along] - 1
        updates = uniform(0.5, 2, *X.shape)
        places = [tuple(picks[p] if i == along else p[i] for i in range(3)) for p in np.ndindex(*X.shape)]
        case(
            "scatter_along_axis",
            scattered(X, places, list(updates.ravel()), kind),
            data=X,
            indices=picks,
            updates=updates,
            **how,
            **at,
        )
    pairs = ints([0, 1], [1, 2], [0, 0] if kind == "update" else [0, 1])
    updates = uniform(0.5, 2, 3, 4)
    places = [(*pair, i) for pair in pairs for i in range(4)]
    case(
        "scatter_nd",
        scattered(X, places, list(updates.ravel()), kind),
        data=X,
        indices=pairs,
        updates=updates,
        **how,
    )
    spots = pairs.reshape(3, 1, 2)
    case(
        "scatter_nd",
        scattered(X, places, list(updates.ravel()), kind),
        data=X,
        indices=spots,
        updates=updates[:, None],
        **how,
    )


for mode in (None, *COMBINE):
    scatters(mode)
