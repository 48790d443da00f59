"""Resizing."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F

from .table import case, normal

PICTURE = normal(2, 3, 4, 5)


def grid(mode: str, n: int, m: int) -> list[float]:
    """Sampling positions, transcribed from MIL's documentation of ``resize_bilinear``."""
    if mode == "ALIGN_CORNERS" and m == 1:
        return [(n - 1) / 2]
    spacing = {
        "STRICT_ALIGN_CORNERS": lambda: (n - 1) / (m - 1) if m > 1 else 0,
        "ALIGN_CORNERS": lambda: (n - 1) / (m - 1),
        "DEFAULT": lambda: (n - n / m) / (m - 1) if m > 1 else 0,
        "OFFSET_CORNERS": lambda: max(1, n - 1) / m,
        "UNALIGN_CORNERS": lambda: n / m,
    }[mode]()
    first = {"OFFSET_CORNERS": 0.5 * max(1, n - 1) / m, "UNALIGN_CORNERS": 0.5 * spacing - 0.5}.get(mode, 0)
    return [min(n - 1, max(0, first + i * spacing)) for i in range(m)]


def sampled(x: np.ndarray, sizes: tuple[int, int], mode: str) -> np.ndarray:
    for axis, size in zip((-2, -1), sizes, strict=True):
        lines = np.moveaxis(x, axis, -1)
        n = lines.shape[-1]
        at = grid(mode, n, size)
        lines = np.stack(
            [np.apply_along_axis(lambda line, t=t, n=n: np.interp(t, range(n), line), -1, lines) for t in at],
            -1,
        )
        x = np.moveaxis(lines, -1, axis)
    return x.astype(np.float32)


for mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"):
    for height, width in ((7, 3), (1, 8), (2, 2)):
        case(
            "resize_bilinear",
            sampled(PICTURE, (height, width), mode),
            x=PICTURE,
            target_size_height=height,
            target_size_width=width,
            sampling_mode=mode,
        )
        case(
            "resize",
            sampled(PICTURE, (height, width), mode),
            x=PICTURE,
            shape=(9, height, width),
            resized_dims=2,
            sampling_mode=mode,
            interpolation_mode="LINEAR",
        )
case(
    "resize_bilinear",
    sampled(PICTURE[:, :, :1], (3, 2), "OFFSET_CORNERS"),
    x=PICTURE[:, :, :1],
    target_size_height=3,
    target_size_width=2,
    sampling_mode="OFFSET_CORNERS",
)
case("resize_bilinear", sampled(PICTURE, (1, 1), "DEFAULT"), x=PICTURE)
for x in (PICTURE, PICTURE[0]):
    tall = sampled(x, (8, 5), "STRICT_ALIGN_CORNERS")
    case("upsample_bilinear", tall, x=x, scale_factor_height=2.0)
    tall = np.repeat(x, 2, -2)
    case("upsample_nearest_neighbor", tall, x=x, scale_factor_height=2.0)
    case("resize_nearest_neighbor", tall, x=x, target_size_height=8, target_size_width=5)
case("resize", sampled(PICTURE, (4, 8), "DEFAULT"), x=PICTURE, shape=(0, 8), resized_dims=2)
case(
    "resize",
    lambda x, **_: F.interpolate(x, (7, 3)),
    x=PICTURE,
    shape=(7, 3),
    resized_dims=2,
    interpolation_mode="NEAREST_NEIGHBOR",
)
case(
    "resize_nearest_neighbor",
    lambda x, **_: F.interpolate(x, (7, 3)),
    x=PICTURE,
    target_size_height=7,
    target_size_width=3,
)
case(
    "upsample_nearest_neighbor",
    lambda x, **_: F.interpolate(x, (8, 15)),
    x=PICTURE,
    scale_factor_height=2.0,
    scale_factor_width=3.0,
)
case("upsample_nearest_neighbor", lambda x: x, x=PICTURE)
case(
    "upsample_bilinear",
    lambda x, **_: F.interpolate(x, (8, 15), mode="bilinear", align_corners=True),
    x=PICTURE,
    scale_factor_height=2.0,
    scale_factor_width=3.0,
)
case(
    "upsample_bilinear",
    lambda x, **_: F.interpolate(x, (10, 6), mode="bilinear", align_corners=False),
    x=PICTURE,
    scale_factor_height=2.5,
    scale_factor_width=1.25,
    align_corners=False,
)
case(
    "upsample_bilinear",
    sampled(PICTURE, (8, 10), "DEFAULT"),
    x=PICTURE,
    scale_factor_height=2.0,
    scale_factor_width=2.0,
    align_corners=False,
    half_pixel_centers=False,
)
case("upsample_bilinear", lambda x: x, x=PICTURE)
