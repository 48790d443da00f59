"""A picture from a file, its bytes or memory: upright, in RGB, the pixels that transformers' ``load_image`` gives.

Every picture enters by ``load_picture``, whichever way it comes. Its rules:

    1. Its EXIF orientation is carried out: a phone stores a photo as its sensor lies, and left and above change places.
    2. Only the formats that are named here are decoded; of several frames the first.
    3. A 16-bit picture keeps the upper byte of each value, as Pillow does where it reads one in colour; integers and
       floats of 32 bits are refused, since nothing says what is black and what is white.
    4. More than ``LARGEST`` pixels are refused; more than ``WHOLE`` are halved in width and height, a JPEG as it is
       decoded, so that memory is bounded.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError
from .inside import check_regular

Picture: TypeAlias = Image.Image | str | Path
"""An image that is open already, or a file's path."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of what is decoded; its JPEG reads MPO too, which some phones and cameras write."""

LARGEST = 178_956_970
"""Pixels of the largest picture: where Pillow itself suspects an attack."""

WHOLE = 50_000_000
"""Pixels of the largest picture that is taken as it is; every model's processor shrinks it further."""

TAKEN = "PNG, JPEG, MPO, WebP, GIF, BMP and TIFF are taken"

_ADDRESS = re.compile(r"(https?|ftp|s3|gs):/+", re.IGNORECASE)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def load_picture(source: Picture | bytes, name: str | None = None) -> Image.Image:
    """A picture upright in RGB, 8 bits per channel.

    Args:
        source: an open image, which stays as it is; a file's path, or a file's bytes.
        name: what an error calls it; its path by default.

    Raises:
        UserError: no such file, an address in place of a file, a format that isn't taken, a damaged file, too many
            pixels, or values without a known range.
    """
    name = name or _name(source)
    try:
        if isinstance(source, Image.Image):
            return _upright(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # rule 4 sets the limit
            return _opened(source, name)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no picture {name}: check the path") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} cannot be read as a picture{_format_of(source)}: {TAKEN}") from None
    except Image.DecompressionBombError:
        raise UserError(_too_large(name, f"more than {LARGEST / 1e6:.0f}")) from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them into
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{name} cannot be read as a picture ({reason}): save it anew as PNG or JPEG"
        ) from error


def _opened(source: str | Path | bytes, name: str) -> Image.Image:
    if not isinstance(source, bytes) and _ADDRESS.match(str(source)):
        raise UserError(
            f"{name} is an address, and pictures are read from files: download it and give the file"
        )
    if not isinstance(source, bytes):
        check_regular(Path(source))
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(file, formats=FORMATS) as image:
        _check_size(image, name)
        if image.width * image.height > WHOLE:
            image.draft(None, (image.width // 2, image.height // 2))
        return _upright(image, name)


def _upright(image: Image.Image, name: str) -> Image.Image:
    """Rules 1, 3 and 4 in the order of ``load_image``: turned first, then RGB."""
    _check_size(image, name)
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    if turned.mode in ("I", "F"):
        kind = "integers" if turned.mode == "I" else "floats"
        raise UserError(
            f"{name} holds {kind} of 32 bits, which say nothing of what is black or white: "
            f"scale its values and save it with 8 or 16 bits"
        )
    rgb = turned if turned.mode == "RGB" else turned.convert("RGB")
    return rgb.reduce(2) if rgb.width * rgb.height > WHOLE else rgb


def _check_size(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if not pixels:
        raise UserError(f"{name} has no pixels: give another picture")
    if pixels > LARGEST:
        raise UserError(_too_large(name, f"{pixels / 1e6:.0f}"))


def _too_large(name: str, megapixels: str) -> str:
    return f"{name} has {megapixels} megapixels, and at most {LARGEST / 1e6:.0f} are taken: make it smaller first"


def _name(source: Picture | bytes) -> str:
    if isinstance(source, str | Path):
        return _ADDRESS.sub(r"\1://", str(source), count=1) if _ADDRESS.match(str(source)) else str(source)
    return str(getattr(source, "filename", "") or "the picture")


def _format_of(source: Picture | bytes) -> str:
    """What a file is that isn't taken, in words after its name; nothing of it is decoded."""
    if isinstance(source, Image.Image):
        return ""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        head = file.read(32)
    known = {"PDF": head.startswith(b"%PDF"), "SVG or XML": head.lstrip().startswith((b"<svg", b"<?xml"))}
    known["HEIC"] = head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
    found = next((word for word, fits in known.items() if fits), None) or _pillow_format(head)
    return f" (its format is {found})" if found else ""


def _pillow_format(head: bytes) -> str | None:
    """The format that Pillow knows such a beginning by."""
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        with contextlib.suppress(IndexError, ValueError, struct.error):  # of a file shorter than they look at
            if name not in FORMATS and accept is not None and accept(head) is True:
                return name
    return None
