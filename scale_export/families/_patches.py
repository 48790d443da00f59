"""Pictures as patches of a grid of their own, laid out on the host; no torch.

A tower takes named arrays ``[pictures, places, ...]``. A place is a group of patches that stay together; pictures with
fewer places than others, or than a tower of fixed shape has, are filled up with zeros, which ``valid`` or window 0
tell the tower to ignore: no picture is resized for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Array, Float32

Grid = tuple[int, int]
"""Rows and columns of patches."""


def stacked(pictures: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Every picture's ``[places, ...]`` as ``[pictures, places, ...]``, zeros after the last place of each."""
    return {name: _stack([picture[name] for picture in pictures]) for name in pictures[0]}


def _stack(rows: Sequence[Array]) -> Array:
    places = max(len(row) for row in rows)
    return np.stack([np.pad(row, [(0, places - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows])


def merged(grid: Array, side: int) -> Array:
    """``[rows, columns, ...]`` → ``[places, side², ...]``: squares of side × side, row by row inside and outside."""
    rows, columns = grid.shape[0] // side, grid.shape[1] // side
    squares = grid.reshape(rows, side, columns, side, *grid.shape[2:])
    return squares.swapaxes(1, 2).reshape(rows * columns, side**2, *grid.shape[2:])


def axial_turns(grid: Grid, side: int, frequencies: NDArray[np.float32]) -> tuple[Float32, Float32]:
    """Cos and sin ``[places, side², 2·frequencies of an axis]`` of a patch's row, then of its column.

    Args:
        side: of the squares of patches that a place holds.
        frequencies: ``[2, head_dim / 4]``, the rows' and the columns'.
    """
    where = merged(np.moveaxis(np.indices(grid), 0, -1), side).astype(np.float32)
    angles = where[..., None] * frequencies
    angles = angles.reshape(*angles.shape[:2], -1)
    return np.cos(angles), np.sin(angles)


def interpolation(grid: Grid, side: int) -> tuple[NDArray[np.int32], Float32]:
    """Which entries of a ``side × side`` table, and how much of each, every place of a grid gets: ``[*grid, 4]`` both.

    Linear between the table's entries, whose corners lie at the grid's.
    """
    (above, down), (left, right) = (_between(length, side) for length in grid)
    taps = above[:, None, :, None] * side + left[None, :, None, :]
    shares = down[:, None, :, None] * right[None, :, None, :]
    return taps.reshape(*grid, 4).astype(np.int32), shares.reshape(*grid, 4)


def _between(length: int, side: int) -> tuple[NDArray[np.int64], Float32]:
    """The two entries of a row of ``side`` around each of ``length`` places, and their shares: ``[length, 2]``."""
    place = np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    first = np.floor(place)
    after = place - first
    taps = first.astype(np.int64)[:, None] + np.arange(2)
    return np.minimum(taps, side - 1), np.stack((1 - after, after), axis=-1)
