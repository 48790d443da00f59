"""Picture files of every kind that hosts decode: what phones, browsers and old software write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x112


def picture_files(folder: Path) -> list[Path]:
    """JPEG of every sampling, CMYK, grey, 16 bits, palettes, alpha, WebP, GIF, TIFF, EXIF 1 to 8, odd shapes."""
    plain, clear = _clouds(160, 120), _clouds(90, 110, channels=4)
    grey = plain.convert("L")
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (plain, {}),
        "q90.jpg": (plain, {"quality": 90}),
        "progressive.jpg": (plain, {"progressive": True}),
        "444.jpg": (plain, {"subsampling": 0}),
        "422.jpg": (plain, {"subsampling": 1}),
        "420.jpg": (plain, {"subsampling": 2}),
        "coarse.jpg": (plain, {"quality": 5}),
        "grey.jpg": (grey, {}),
        "grey.png": (grey, {}),
        "cmyk.jpg": (plain.convert("CMYK"), {"quality": 95}),
        "cmyk.tiff": (plain.convert("CMYK"), {}),
        "rgb.tiff": (plain, {}),
        "one_bit.png": (plain.convert("1"), {}),
        "sixteen.png": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 251 + 5), {}),
        "palette.png": (plain.quantize(64), {}),
        "key.png": (plain.quantize(32), {"transparency": 3}),
        "palette.gif": (plain.quantize(128), {}),
        "alpha.png": (clear, {}),
        "grey_alpha.png": (Image.merge("LA", [grey, _clouds(160, 120).getchannel(0)]), {}),
        "lossless.webp": (plain, {"lossless": True}),
        "lossy.webp": (plain, {"quality": 80}),
        "alpha.webp": (clear, {"lossless": True, "exact": True}),
        "tall.png": (_clouds(20, 150), {}),
        "wide.jpg": (_clouds(180, 19), {}),
        "small.png": (_clouds(13, 11), {}),
        "pixel.png": (Image.new("RGB", (1, 1), (10, 200, 60)), {}),
        **{f"exif{turn}.jpg": (_clouds(75, 50), {"exif": _exif(turn)}) for turn in range(1, 9)},
        "exif6.png": (_clouds(75, 50), {"exif": _exif(6)}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _clouds(width: int, height: int, channels: int = 3) -> Image.Image:
    """Soft random colours, which every decoder and resampler has something to do with."""
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (max(1, height // 6), max(1, width // 6), channels), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
