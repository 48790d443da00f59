"""Matrix products, convolutions and pooling."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .table import case, integers, normal

case(
    "linear",
    F.linear,
    x=normal(2, 3, 4),
    weight=normal(5, 4),
    bias=normal(5),
)
case("linear", F.linear, x=normal(4), weight=normal(5, 4))
case("matmul", lambda x, y: x @ y, x=normal(2, 1, 3, 4), y=normal(5, 4, 6))
case("matmul", lambda x, y: x @ y, x=integers(-3, 3, 2, 3), y=integers(-3, 3, 3, 4))
case(
    "matmul",
    lambda x, y, transpose_x, transpose_y: x.transpose(-1, -2) @ y.transpose(-1, -2),
    x=normal(2, 4, 3),
    y=normal(2, 5, 4),
    transpose_x=True,
    transpose_y=True,
)
case("matmul", lambda x, y: x @ y, x=normal(4), y=normal(4, 3))
EQUATION = "nchw,nwhu->nchu"
case(
    "einsum",
    lambda values, equation: torch.einsum(equation, *values),
    values=(normal(2, 3, 4, 5), normal(2, 5, 4, 6)),
    equation=EQUATION,
)


def convolved(
    x: Any,
    weight: Any,
    bias: Any = None,
    strides: Any = 1,
    pad: Any = (),
    dilations: Any = 1,
    groups: int = 1,
    **_: Any,
) -> Any:
    last_first = [n for at in range(len(pad) - 2, -1, -2) for n in pad[at : at + 2]]
    function = F.conv1d if x.ndim == 3 else F.conv2d
    return function(F.pad(x, last_first), weight, bias, strides, 0, dilations, groups)


case("conv", convolved, x=normal(2, 4, 7), weight=normal(6, 4, 3), bias=normal(6))
case(
    "conv",
    convolved,
    x=normal(2, 4, 7, 9),
    weight=normal(6, 2, 3, 2),
    strides=(2, 3),
    pad_type="valid",
    groups=2,
)
case(
    "conv",
    convolved,
    x=normal(2, 4, 7, 9),
    weight=normal(4, 1, 3, 2),
    bias=normal(4),
    pad_type="custom",
    pad=(1, 2, 0, 3),
    dilations=(2, 1),
    groups=4,
)
SAME = {
    "same": ((0, 1), (1, 1), (1, 2), (2, 2), (1, 1), (0, 1), (0, 0)),
    "same_lower": ((1, 0), (1, 1), (2, 1), (2, 2), (1, 1), (1, 0), (0, 0)),
}
for pad_type, pads in SAME.items():
    for size, kernel, step, dilation, pair in (
        (6, 2, 1, 1, 0),
        (6, 3, 1, 1, 1),
        (7, 4, 1, 1, 2),
        (6, 3, 1, 2, 3),
        (7, 3, 2, 1, 4),
        (6, 3, 2, 1, 5),
        (6, 1, 2, 1, 6),
    ):
        case(
            "conv",
            lambda x, weight, strides, dilations, pad_type, pads=pads[pair]: convolved(
                x, weight, None, strides, pads, dilations
            ),
            x=normal(1, 2, size),
            weight=normal(3, 2, kernel),
            strides=(step,),
            dilations=(dilation,),
            pad_type=pad_type,
        )

POOLED = normal(2, 3, 7, 8)
for name, function in (("max_pool", F.max_pool2d), ("avg_pool", F.avg_pool2d)):
    case(
        name, lambda x, f=function, **_: f(x, (2, 3), (1, 1)), x=POOLED, kernel_sizes=(2, 3), pad_type="valid"
    )
    case(
        name,
        lambda x, f=function, **_: f(x, (3, 4), (2, 3), (1, 2)),
        x=POOLED,
        kernel_sizes=(3, 4),
        strides=(2, 3),
        pad_type="custom",
        pad=(1, 1, 2, 2),
    )
    for size, kernel, step, padding in (
        (7, 3, 2, 0),
        (8, 3, 2, 0),
        (8, 3, 2, 1),
        (7, 2, 3, 1),
        (6, 3, 2, 1),
        (6, 2, 2, 1),
        (7, 2, 2, 1),
    ):
        case(
            name,
            lambda x, name=name, k=kernel, s=step, p=padding, **_: getattr(F, f"{name}1d")(
                x, k, s, p, ceil_mode=True
            ),
            x=normal(1, 2, size),
            kernel_sizes=(kernel,),
            strides=(step,),
            pad_type="custom",
            pad=(padding, padding),
            ceil_mode=True,
        )
case(
    "avg_pool",
    lambda x, **_: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    x=POOLED,
    kernel_sizes=(3, 3),
    strides=(2, 2),
    pad_type="custom",
    pad=(1, 1, 1, 1),
    exclude_padding_from_average=True,
)
