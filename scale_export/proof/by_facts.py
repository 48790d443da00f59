"""A picture prepared by the facts of ``runtime.json`` alone, as a host in any language does it (``docs/runtime.md``).

Nothing here is shared with what writes the facts, nor with an image processor: Pillow resamples, NumPy does the rest.
Facts are checked where they are read: one that a rule needs and that is not there is a ``KeyError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from PIL import Image
from pydantic import JsonValue

from scale_export.core.pictures import WHOLE
from scale_export.core.records import Float32
from scale_export.device.onnxruntime.host import ImageFacts, ImageRule

Shape: TypeAlias = tuple[int, int]
"""Width and height."""
LONGEST: Final = 4096
"""Pixels of the longest edge that ``idefics3`` leaves, whatever the facts say."""
MOST_TILES: Final = 1024
"""Of a picture that is prepared here; no model has as many."""


@dataclass(frozen=True, slots=True)
class ByFacts:
    """One picture's ``pixel_values`` in the layout of its rule, and its image tokens, None where no fact tells."""

    pixel_values: Float32
    tokens: int | None


def prepare(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """A picture of a prompt that shows no other, upright in RGB.

    Raises:
        KeyError: the facts name no rule, or lack what their rule needs.
    """
    if facts.rule is None:
        raise KeyError("rule")
    return _RULES[facts.rule](facts, picture)


def _fixed(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[1, 3, height, width]``."""
    return ByFacts(_values(facts, [_cropped(facts, _resized(facts, picture))]), facts.tokens)


def _anyres(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[1, 1 + tiles, 3, side, side]``: the whole picture first, then the tiles row by row."""
    whole = _whole_shape(facts)
    side = (facts.crop or {}).get("height", whole[1])
    height, width = _best_pinpoint(facts, picture)
    scale = min(width / picture.width, height / picture.height)
    if width / picture.width < height / picture.height:
        inner = (width, min(math.ceil(picture.height * scale), height))
    else:
        inner = (min(math.ceil(picture.width * scale), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(_to(facts, picture, inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    tiles = [_to(facts, picture, whole), *_tiles(canvas, side, side)]
    return ByFacts(_values(facts, [_cropped(facts, _resized(facts, t)) for t in tiles])[None], facts.tokens)


def _best_pinpoint(facts: ImageFacts, picture: Image.Image) -> tuple[int, int]:
    """Height and width of the grid that keeps most of the picture's pixels and, of several, wastes fewest."""
    pixels = picture.width * picture.height
    best, kept, wasted = (0, 0), 0, math.inf
    for height, width in _pairs(_tile_fact(facts, "image_grid_pinpoints")):
        scale = min(width / picture.width, height / picture.height)
        shown = min(int(picture.width * scale) * int(picture.height * scale), pixels)
        if shown > kept or (shown == kept and height * width - shown < wasted):
            best, kept, wasted = (height, width), shown, height * width - shown
    return best


def _idefics3(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[1, tiles + 1, 3, side, side]``: the tiles row by row, then the whole picture."""
    side = _number(_mapping(_tile_fact(facts, "max_image_size")), "longest_edge")
    if facts.resize:
        picture = _to(facts, picture, _longest(facts.resize.size["longest_edge"], picture))
    if not _tile_fact(facts, "do_image_splitting"):
        return ByFacts(_values(facts, [_to(facts, picture, (side, side))])[None], facts.tokens)
    ratio = picture.width / picture.height
    if picture.width >= picture.height:
        width = _up(picture.width, side)
        height = _up(int(width / ratio), side)
    else:
        height = _up(picture.height, side)
        width = _up(int(height * ratio), side)
    full = _to(facts, picture, (width, height))
    if max(width, height) <= side:
        return ByFacts(_values(facts, [full])[None], facts.tokens)
    tiles = [*_tiles(full, side, side), _to(facts, full, (side, side))]
    return ByFacts(_values(facts, tiles)[None], facts.tokens)


def _longest(edge: int, picture: Image.Image) -> Shape:
    """The longer edge becomes ``edge``, the other even; then neither is longer than ``LONGEST``."""
    ratio = picture.width / picture.height
    if picture.width >= picture.height:
        width, height = edge, max(1, int(edge / ratio) + int(edge / ratio) % 2)
    else:
        width, height = max(1, int(edge * ratio) + int(edge * ratio) % 2), edge
    ratio = width / height
    if width >= height and width > LONGEST:
        width, height = LONGEST, max(1, int(LONGEST / ratio))
    elif height > width and height > LONGEST:
        width, height = max(1, int(LONGEST * ratio)), LONGEST
    return width, height


def _internvl(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[tiles + 1, 3, height, width]``: the tiles row by row, then the whole picture, if there is more than one."""
    side = _whole_shape(facts)
    whole = _to(facts, picture, side)
    if not _tile_fact(facts, "crop_to_patches") or _tile_fact(facts, "max_patches") == 1:
        return ByFacts(_values(facts, [whole]), facts.tokens)
    columns, rows = _nearest_grid(facts, picture, side)
    tiles = _tiles(_to(facts, picture, (columns * side[0], rows * side[1])), *side)
    return ByFacts(_values(facts, [*tiles, whole] if len(tiles) > 1 else tiles), facts.tokens)


def _nearest_grid(facts: ImageFacts, picture: Image.Image, side: Shape) -> Shape:
    """Columns and rows: nearest to the picture's shape, of equals the later whose half the picture's area exceeds."""
    least, most = (_number(facts.tiles or {}, name) for name in ("min_patches", "max_patches"))
    if most > MOST_TILES:
        raise KeyError("max_patches")
    edges = range(1, most + 1)
    grids = [(c, r) for c in edges for r in edges if least <= c * r <= most]
    best, away = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        found = abs(picture.width / picture.height - columns / rows)
        fills = picture.width * picture.height > 0.5 * math.prod(side) * columns * rows
        if found < away or (found == away and fills):
            best = (columns, rows)
        away = min(away, found)
    return best


def _qwen(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[patches, 3 · frames · side · side]``: the patches of a token together, tokens row by row."""
    patches = facts.patches or {}
    side, merge, frames = (_number(patches, n) for n in ("patch_size", "merge_size", "temporal_patch_size"))
    if facts.resize:
        size = facts.resize.size
        picture = _to(
            facts, picture, _within(picture, side * merge, size["shortest_edge"], size["longest_edge"])
        )
    rows, columns = picture.height // side // merge, picture.width // side // merge
    values = _values(facts, [picture])[0].reshape(3, rows, merge, side, columns, merge, side)
    tokens = values.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    flat = np.repeat(tokens, frames, axis=5).reshape(rows * columns * merge**2, -1)
    return ByFacts(flat, rows * columns)


def _within(picture: Image.Image, step: int, least: int, most: int) -> Shape:
    """Edges in whole steps, so that the picture has from ``least`` to ``most`` pixels."""
    shape = picture.size
    width, height = (round(edge / step) * step for edge in shape)
    pixels = math.prod(shape)
    if width * height > most:
        shrink = math.sqrt(pixels / most)
        width, height = (max(step, math.floor(edge / shrink / step) * step) for edge in shape)
    elif width * height < least:
        grow = math.sqrt(least / pixels)
        width, height = (math.ceil(edge * grow / step) * step for edge in shape)
    return width, height


def _pixtral(facts: ImageFacts, picture: Image.Image) -> ByFacts:
    """``[1, 3, height, width]`` in whole squares of ``patch_size``, each of them a token."""
    square = _mapping((facts.patches or {})["patch_size"])
    down, across = _number(square, "height"), _number(square, "width")
    if facts.resize:
        edge = facts.resize.size["longest_edge"]
        shrink = max(picture.height / edge, picture.width / edge, 1.0)
        width, height = (math.floor(pixels / shrink) for pixels in picture.size)
        picture = _to(facts, picture, (_up(width, across), _up(height, down)))
    return ByFacts(_values(facts, [picture]), (picture.width // across) * (picture.height // down))


_RULES: Final[Mapping[ImageRule, Callable[[ImageFacts, Image.Image], ByFacts]]] = {
    "fixed": _fixed,
    "anyres": _anyres,
    "anyres_max": _anyres,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "qwen": _qwen,
    "pixtral": _pixtral,
}


def _resized(facts: ImageFacts, picture: Image.Image) -> Image.Image:
    """To ``height`` and ``width``, or the shorter edge to ``shortest_edge``."""
    if facts.resize is None:
        return picture
    size = facts.resize.size
    if "shortest_edge" not in size:
        return _to(facts, picture, (size["width"], size["height"]))
    short, edge = min(picture.size), size["shortest_edge"]
    width, height = (edge if pixels == short else int(edge * pixels / short) for pixels in picture.size)
    return _to(facts, picture, (width, height))


def _cropped(facts: ImageFacts, picture: Image.Image) -> Image.Image:
    """The centre; black around a picture that is smaller."""
    if facts.crop is None:
        return picture
    width, height = facts.crop["width"], facts.crop["height"]
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _whole_shape(facts: ImageFacts) -> Shape:
    """What the picture beside its tiles is brought to."""
    size = facts.resize.size if facts.resize else {}
    square = size.get("shortest_edge")
    return (square, square) if square else (size["width"], size["height"])


def _to(facts: ImageFacts, picture: Image.Image, shape: Shape) -> Image.Image:
    if facts.resize is None or math.prod(shape) > WHOLE:
        raise KeyError("resize")
    return picture.resize(shape, Image.Resampling[facts.resize.filter.upper()])


def _tiles(picture: Image.Image, width: int, height: int) -> list[Image.Image]:
    """Row by row."""
    if picture.width * picture.height > MOST_TILES * width * height:
        raise KeyError("tiles")
    return [
        picture.crop((left, top, left + width, top + height))
        for top in range(0, picture.height, height)
        for left in range(0, picture.width, width)
    ]


def _values(facts: ImageFacts, pictures: list[Image.Image]) -> Float32:
    """``[pictures, 3, height, width]``: rescaled, then normalized."""
    values = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float64)
    if facts.rescale is not None:
        values *= facts.rescale
    if facts.normalize is not None:
        values = (values - facts.normalize.mean) / facts.normalize.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def _up(pixels: int, step: int) -> int:
    return -(-pixels // step) * step


def _tile_fact(facts: ImageFacts, name: str) -> JsonValue:
    return (facts.tiles or {})[name]


def _number(facts: Mapping[str, JsonValue], name: str) -> int:
    value = facts[name]
    if not isinstance(value, int) or value < 1:
        raise KeyError(name)
    return value


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    if not isinstance(value, dict):
        raise KeyError(str(value))
    return value


def _pairs(value: JsonValue) -> Iterator[tuple[int, int]]:
    for pair in value if isinstance(value, list) else ():
        if not (isinstance(pair, list) and len(pair) == 2):
            raise KeyError("image_grid_pinpoints")
        named = dict(zip("hw", pair, strict=True))
        yield _number(named, "h"), _number(named, "w")
