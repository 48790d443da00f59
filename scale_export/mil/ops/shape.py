"""Operations that move, join, cut and make values without computing on them."""

from __future__ import annotations

import math

import numpy as np

from scale_export.core.records import Array

from .registry import Arrays, Bools, Ints, move, op


@op
def shape(x: Array) -> Array:
    """The sizes of ``x``: int ``[rank]``."""
    return np.asarray(x.shape)


@move
def reshape(x: Array, shape: Ints) -> Array:
    """``x`` in another shape: 0 keeps the size at that place, and −1 is what remains."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


@move
def reshape_like(x: Array, ref_tensors: Arrays, begins: Arrays, ends: Arrays, end_masks: Arrays) -> Array:
    """``x`` in the shape that slices ``begin:end`` of the references' shapes make together."""
    sizes: Ints = ()
    for ref, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += ref.shape[int(begin) : None if to_end else int(end)]
    return x.reshape(sizes)


@move
def transpose(x: Array, perm: Ints) -> Array:
    """``x`` with its axes in the order of ``perm``."""
    return x.transpose(perm)


@move
def expand_dims(x: Array, axes: Ints) -> Array:
    """``x`` with axes of size 1 at the places ``axes`` of the result."""
    return np.expand_dims(x, axes)


@move
def squeeze(x: Array, axes: Ints | None = None) -> Array:
    """``x`` less those of ``axes`` (by default all) that have size 1."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    return x.squeeze(tuple(axis for axis in axes if x.shape[axis] == 1))


@move
def flatten2d(x: Array, axis: int = 1) -> Array:
    """``x`` as a matrix, whose rows are the axes before ``axis``."""
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@move
def concat(values: Arrays, axis: int, interleave: bool = False) -> Array:
    """Arrays joined along ``axis``, one after the other or element by element."""
    if not interleave:
        return np.concatenate(values, axis)
    first, *_ = values
    axis %= first.ndim
    sizes = [size * len(values) if i == axis else size for i, size in enumerate(first.shape)]
    return np.stack(values, axis + 1).reshape(sizes)


@move
def stack(values: Arrays, axis: int) -> Array:
    """Arrays joined along a new ``axis``."""
    return np.stack(values, axis)


@move
def split(x: Array, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> list[Array]:
    """``x`` cut along ``axis``, evenly or into ``split_sizes``."""
    if split_sizes is not None:
        return np.split(x, np.cumsum(split_sizes)[:-1].tolist(), axis)
    assert num_splits is not None  # MIL demands one of the two
    return np.split(x, num_splits, axis)


@move
def tile(x: Array, reps: Ints) -> Array:
    """``x`` repeated ``reps`` times along each axis."""
    return np.tile(x, reps)


@move
def reverse(x: Array, axes: Ints | None = None) -> Array:
    """``x`` backwards along ``axes``, by default all."""
    return np.flip(x, axes)


def _index(
    rank: int,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> tuple[slice | int, ...]:
    """``begin:end:stride`` per axis; a masked bound is open, and a squeezed axis is indexed at its begin."""
    no = (False,) * rank
    return tuple(
        first if only else slice(None if open_first else first, None if open_last else last, step)
        for first, last, step, open_first, open_last, only in zip(
            begin,
            end,
            stride or (1,) * rank,
            begin_mask or no,
            end_mask or no,
            squeeze_mask or no,
            strict=True,
        )
    )


@move
def slice_by_index(
    x: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    """``x[begin:end:stride]``, see ``_index``."""
    result: Array = x[_index(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)]
    return result


@move
def slice_update(
    x: Array,
    update: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Array:
    """A copy of ``x`` with ``update`` in the place that ``slice_by_index`` would give."""
    result = x.copy()
    result[_index(x.ndim, begin, end, stride, begin_mask, end_mask, squeeze_mask)] = update
    return result


@move
def slice_by_size(x: Array, begin: Ints, size: Ints) -> Array:
    """``size`` elements from ``begin`` on; −1 is all that remain."""
    starts = [first + length if first < 0 else first for first, length in zip(begin, x.shape, strict=True)]
    return x[
        tuple(slice(first, None if n == -1 else first + n) for first, n in zip(starts, size, strict=True))
    ]


@move
def sliding_windows(x: Array, axis: int, size: int, stride: int = 1) -> Array:
    """Windows of ``size`` elements along ``axis``, which lie on a new axis behind it."""
    axis %= x.ndim
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.moveaxis(windows, -1, axis + 1)[(slice(None),) * axis + (slice(None, None, stride),)]


@move
def pad(x: Array, pad: Ints, mode: str = "constant", constant_val: Array | None = None) -> Array:
    """``x`` with ``pad`` = before, after of its last axes, filled by a constant, reflection or the border."""
    widths = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return np.pad(x, widths, constant_values=0 if constant_val is None else constant_val)
    return np.pad(x, widths, {"reflect": "reflect", "replicate": "edge"}[mode])  # type: ignore[call-overload,no-any-return]


@move
def band_part(x: Array, lower: int = -1, upper: int = -1) -> Array:
    """Matrices with zeros more than ``lower`` below and ``upper`` above the diagonal; −1 is no limit."""
    below = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    keep = (below <= lower if lower >= 0 else True) & (-below <= upper if upper >= 0 else True)
    return np.where(keep, x, 0)


@op
def fill(shape: Ints, value: Array | None = None) -> Array:
    """An array of one value, by default 0.0."""
    return np.full(shape, np.float32(0) if value is None else value)


@op
def fill_like(ref_tensor: Array, value: Array | None = None) -> Array:
    """An array of one value, by default 0.0, in the shape of another."""
    return np.full(ref_tensor.shape, np.float32(0) if value is None else value)


@op
def range_1d(end: Array, start: Array, step: Array) -> Array:
    """start, start + step, ... before ``end``."""
    return np.arange(start, end, step)


@op
def one_hot(
    indices: Array,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Array | None = None,
    off_value: Array | None = None,
) -> Array:
    """``on_value`` at each index along a new ``axis``, ``off_value`` elsewhere."""
    hot = np.moveaxis(indices[..., None] == np.arange(one_hot_vector_size), -1, axis)
    return np.where(hot, 1 if on_value is None else on_value, 0 if off_value is None else off_value)


@op
def non_zero(x: Array) -> Array:
    """The indices of nonzero elements: ``[count, rank]``."""
    return np.argwhere(x)


@move
def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """``[N, C·f², H, W]`` → ``[N, C, H·f, W·f]``, as PyTorch's."""
    n, c, h, w = x.shape
    f = upscale_factor
    return x.reshape(n, c // f**2, f, f, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // f**2, h * f, w * f)


@move
def pixel_unshuffle(x: Array, downscale_factor: int) -> Array:
    """``[N, C, H·f, W·f]`` → ``[N, C·f², H, W]``, as PyTorch's."""
    n, c, h, w = x.shape
    f = downscale_factor
    return (
        x.reshape(n, c, h // f, f, w // f, f).transpose(0, 1, 3, 5, 2, 4).reshape(n, c * f**2, h // f, w // f)
    )


@move
def depth_to_space(x: Array, block_size: int) -> Array:
    """``[N, b²·C, H, W]`` → ``[N, C, H·b, W·b]``, the block's place slowest among channels."""
    n, c, h, w = x.shape
    b = block_size
    return x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@move
def space_to_depth(x: Array, block_size: int) -> Array:
    """``[N, C, H·b, W·b]`` → ``[N, b²·C, H, W]``, the block's place slowest among channels."""
    n, c, h, w = x.shape
    b = block_size
    return (
        x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)
    )
