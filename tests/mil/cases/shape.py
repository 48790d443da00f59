"""Moving, joining, cutting and making values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .table import X, Y, booleans, case, floats, integers, ints, normal

case("shape", ints(2, 3, 4), x=X)
case("reshape", lambda x, shape: x.reshape(2, 6, 2), x=X, shape=(2, -1, 2))
case("reshape", lambda x, shape: x.reshape(2, 4, 3), x=X, shape=(0, -1, 3))
case(
    "reshape_like",
    lambda x, **_: x.reshape(2, 3, 4),
    x=normal(6, 4),
    ref_tensors=(normal(2, 3, 5), normal(7, 4)),
    begins=(ints(0)[0], ints(1)[0]),
    ends=(ints(2)[0], ints(0)[0]),
    end_masks=(np.bool_(False), np.bool_(True)),
)
case("transpose", lambda x, perm: x.permute(2, 0, 1), x=X, perm=(-1, 0, 1))
case("expand_dims", lambda x, axes: x[:, None, ..., None], x=X, axes=(1, -1))
case("squeeze", lambda x, axes: x.reshape(2, 1, 3), x=normal(1, 2, 1, 3), axes=(0, 1))
case("squeeze", lambda x: x.squeeze(), x=normal(1, 2, 1, 3))
case("flatten2d", lambda x, axis: x.reshape(6, 4), x=X, axis=2)
case("flatten2d", lambda x: x.reshape(2, 12), x=X)
case("concat", torch.cat, values=(normal(2, 3), normal(2, 5)), axis=-1)
case("concat", torch.cat, values=(normal(2, 3), normal(4, 3)), axis=0)
for axis in (0, -2):
    case(
        "concat",
        lambda values, axis, interleave: torch.stack(values, axis % 3 + 1).flatten(axis % 3, axis % 3 + 1),
        values=(normal(2, 3, 4), normal(2, 3, 4)),
        axis=axis,
        interleave=True,
    )
case("stack", torch.stack, values=(normal(2, 3), normal(2, 3)), axis=1)
case("split", lambda x, axis, num_splits: x.chunk(3, axis), x=normal(4, 6), axis=1, num_splits=3)
case(
    "split",
    lambda x, axis, split_sizes: x.split((1, 3, 2), axis),
    x=normal(6, 2),
    axis=0,
    split_sizes=(1, 3, 2),
)
case(
    "split",
    lambda x, axis, split_sizes: x.split((1, 3, 2), axis),
    x=normal(2, 6),
    axis=1,
    split_sizes=(1, 3, 2),
)
case("tile", lambda x, reps: x.tile(reps), x=normal(2, 1, 3), reps=(1, 3, 2))
case("reverse", lambda x, axes: x.flip(axes), x=X, axes=(0, -1))
case("reverse", lambda x: x.flip((0, 1, 2)), x=X)

SLICES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (np.s_[1:3, 0:5:2, -4:-1], {"begin": (1, 0, -4), "end": (3, 5, -1), "stride": (1, 2, 1)}),
    (
        np.s_[:2, 3:, ::-1],
        {
            "begin": (9, 3, 9),
            "end": (2, 9, 9),
            "stride": (1, 1, -1),
            "begin_mask": (True, False, True),
            "end_mask": (False, True, True),
        },
    ),
    (
        np.s_[2, 1:4, -1],
        {"begin": (2, 1, -1), "end": (0, 4, 0), "squeeze_mask": (True, False, True)},
    ),
)
for index, given in SLICES:
    case("slice_by_index", Y[index], x=Y, **given)
    changed = Y.copy()
    changed[index] = update = normal(*Y[index].shape)
    case("slice_update", changed, x=Y, update=update, **given)
case("slice_by_size", Y[1:3, 2:, -2:-1], x=Y, begin=(1, 2, -2), size=(2, -1, 1))
case("slice_by_size", Y[0:3, 3:4, 4:], x=Y, begin=(0, -2, -2), size=(3, 1, -1))
case(
    "sliding_windows",
    lambda x, axis, size, stride: x.unfold(1, 3, 2).movedim(-1, 2),
    x=Y,
    axis=-2,
    size=3,
    stride=2,
)
case("slice_by_size", Y[-1:, :2, 4:], x=Y, begin=(-1, 0, 4), size=(1, 2, 2))
case("sliding_windows", lambda x, axis, size: x.unfold(0, 2, 1).movedim(-1, 1), x=Y, axis=0, size=2)
case(
    "pad",
    lambda x, pad, constant_val, mode: F.pad(x, (3, 0, 1, 2), value=1.5),
    x=X,
    pad=(1, 2, 3, 0),
    constant_val=np.float32(1.5),
    mode="constant",
)
case("pad", lambda x, pad: F.pad(x, (1, 2)), x=X, pad=(1, 2))
case("pad", lambda x, pad, mode: F.pad(x, (2, 1), mode="reflect"), x=X, pad=(2, 1), mode="reflect")
case("pad", lambda x, pad, mode: F.pad(x, (2, 1), mode="replicate"), x=X, pad=(2, 1), mode="replicate")
for lower, upper in itertools.product((-1, 0, 1), repeat=2):
    keep = [
        [(lower < 0 or m - n <= lower) and (upper < 0 or n - m <= upper) for n in range(4)] for m in range(5)
    ]
    case(
        "band_part",
        lambda x, lower, upper, keep=keep: x * torch.tensor(keep),
        x=normal(2, 5, 4),
        lower=lower,
        upper=upper,
    )
case("band_part", lambda x: x, x=normal(5, 4))
case("fill", np.full((2, 3), 1.5, np.float32), shape=(2, 3), value=np.float32(1.5))
case("fill", np.zeros((2, 3), np.float32), shape=(2, 3))
case("fill_like", np.full((2, 3, 4), 7, np.int32), ref_tensor=X, value=np.int32(7))
case("fill_like", np.zeros((2, 3, 4), np.float32), ref_tensor=X)
case("range_1d", ints(2, 5, 8), start=np.int32(2), end=np.int32(10), step=np.int32(3))
case("range_1d", floats(0.5, 0.25, 0), start=np.float32(0.5), end=np.float32(-0.25), step=np.float32(-0.25))
case(
    "one_hot",
    lambda indices, **_: F.one_hot(indices.long(), 4).int(),
    indices=ints(0, 3, 1),
    one_hot_vector_size=4,
)
case(
    "one_hot",
    np.where(np.arange(4)[:, None] == [0, 3, 1], 2.5, -1).astype(np.float32),
    indices=ints(0, 3, 1),
    one_hot_vector_size=4,
    axis=0,
    on_value=np.float32(2.5),
    off_value=np.float32(-1),
)
case(
    "one_hot",
    lambda indices, **_: F.one_hot(indices.long(), 4).int(),
    indices=integers(0, 4, 2, 3),
    one_hot_vector_size=4,
)
case("non_zero", lambda x: torch.nonzero(x).int(), x=booleans(3, 4))
case(
    "pixel_shuffle", lambda x, upscale_factor: F.pixel_shuffle(x, 3), x=normal(2, 18, 3, 4), upscale_factor=3
)
case(
    "pixel_unshuffle",
    lambda x, downscale_factor: F.pixel_unshuffle(x, 3),
    x=normal(2, 2, 3, 6),
    downscale_factor=3,
)
DEPTHS = normal(2, 18, 3, 4)
SPREAD = np.zeros((2, 2, 9, 12), np.float32)
for i, j in itertools.product(range(3), repeat=2):
    SPREAD[:, :, i::3, j::3] = DEPTHS[:, (i * 3 + j) * 2 : (i * 3 + j + 1) * 2]
case("depth_to_space", SPREAD, x=DEPTHS, block_size=3)
case("space_to_depth", DEPTHS, x=SPREAD, block_size=3)
