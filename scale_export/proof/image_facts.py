"""The image facts of ``runtime.json`` against the package's own processor, on pictures at the edges of those facts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from scale_export.core.compare import LargestError, worst_of
from scale_export.core.huggingface import Processor
from scale_export.core.limits import FACT_LEVELS
from scale_export.core.pictures import WHOLE
from scale_export.device.onnxruntime.host import ROLE, ImageFacts, read_runtime_config
from scale_export.device.pixels import VALUES, levels_per_unit
from scale_export.device.prompts import encode_messages, user_message
from scale_export.plan.record import Plan

from .by_facts import Shape, prepare
from .report import ParityReport

SUBJECT: Final = "image facts in runtime.json"
"""What a report's ``not_checked`` calls them."""
ANY: Final[tuple[Shape, ...]] = ((53, 37), (90, 160), (400, 25), (1000, 701))
"""Width and height of pictures that every rule is read on: small and large, tall and very wide."""
NARROWEST: Final = 100
"""Width by height of a picture that every processor takes; Qwen's refuse 200."""
QUESTION: Final = "?"


SIZES: Final = ({"shortest_edge"}, {"height", "width"})
"""What ``fixed`` knows to resize to."""


def facts_error(
    report: ParityReport, plan: Plan, graphs: Mapping[str, Path], processor: Processor
) -> LargestError | None:
    """How far the facts beside ONNX Runtime's ``graphs`` (role → file) are from the package's processor.

    None where no file states any, or none can be read, which the report then says.

    Raises:
        UserError: the file does not follow its schema.
    """
    if plan.target.backend != "onnxruntime" or ROLE not in graphs:
        return None
    facts = read_runtime_config(graphs[ROLE]).image
    if reason := not_read(facts, processor):
        report.skip(SUBJECT, reason)
        return None
    return largest_error(facts, processor, plan.base.image_token_id)


def not_read(facts: ImageFacts, processor: Processor) -> str | None:
    """Why the facts can't be held to this processor; None where they can."""
    if facts.rule is None:
        return f"no rule there says how {facts.processor} prepares a picture, and a host must refuse it"
    if facts.rule == "fixed" and facts.resize and set(facts.resize.size) not in SIZES:
        return f"no host was written for pictures of size {facts.resize.size}"
    if getattr(processor.image_processor, "backend", "pil") != "pil":
        return "the processor resamples by torchvision here, and the facts name Pillow's filters"
    return None


def largest_error(facts: ImageFacts, processor: Processor, image_token_id: int) -> LargestError:
    """The largest difference of a pixel in 8-bit levels, facts against processor, on every picture of ``shapes``.

    It is infinite where one gives another shape or another number of image tokens, or the facts lack one.
    """
    levels = levels_per_unit(processor)
    found = [levels * _difference(facts, processor, image_token_id, shape) for shape in shapes(facts)]
    metric = "max pixel difference of pictures prepared by runtime.json, 8-bit levels"
    return LargestError(metric=metric, value=worst_of(found), limit=FACT_LEVELS)


def shapes(facts: ImageFacts) -> list[Shape]:
    """Pictures to compare on: any, and those at which a limit that the facts state begins to act."""
    edges = (shape for shape in _edges(facts) if min(shape) > 0 and math.prod(shape) <= WHOLE)
    return list(dict.fromkeys((*ANY, *edges)))


def _edges(facts: ImageFacts) -> Iterator[Shape]:
    size = facts.resize.size if facts.resize else {}
    tiles, patches = facts.tiles or {}, facts.patches or {}
    if facts.rule in ("anyres", "anyres_max"):
        pinpoints = np.array(tiles.get("image_grid_pinpoints", ()), int).reshape(-1, 2)
        yield from ((int(width), int(height)) for height, width in pinpoints)
    elif facts.rule == "internvl":
        side = size.get("height", 1)
        yield 2 * side, 2 * side
        limits = (tiles.get("min_patches"), tiles.get("max_patches"))
        for limit in (number for number in limits if isinstance(number, int)):
            for ratio in range(max(1, limit - 1), limit + 2):
                yield ratio * side, side
                yield side, ratio * side
    elif facts.rule == "qwen":
        step = math.prod(
            n for n in (patches.get("patch_size"), patches.get("merge_size")) if isinstance(n, int)
        )
        for pixels in (size.get("shortest_edge"), size.get("longest_edge")):
            tokens = (pixels or 0) // step**2
            yield from (_rectangle(number, step) for number in range(max(1, tokens - 1), tokens + 2))
    elif facts.rule == "pixtral":
        edge = size.get("longest_edge", 1)
        for longer in (edge, edge + 1):
            yield longer, longer // 3 + 1
            yield longer // 3 + 1, longer


def _rectangle(tokens: int, step: int) -> Shape:
    """Of exactly so many squares of ``step`` pixels, the least narrow; of fewer where none would take it."""
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    if tokens > NARROWEST * rows**2:
        rows = math.isqrt(tokens)
    return tokens // rows * step, rows * step


def _difference(facts: ImageFacts, processor: Processor, image_token_id: int, shape: Shape) -> float:
    """Of one picture, in units of ``pixel_values``."""
    picture = _noise(shape)
    due = encode_messages(processor, [user_message([picture], QUESTION)])
    try:
        own = prepare(facts, picture)
    except (KeyError, ZeroDivisionError):
        return math.inf
    values = due[VALUES]
    tokens = np.count_nonzero(due["input_ids"] == image_token_id)
    if own.pixel_values.shape != values.shape or own.tokens not in (None, tokens):
        return math.inf
    return float(np.abs(own.pixel_values.astype(np.float64) - values).max())


def _noise(shape: Shape) -> Image.Image:
    """Pixels that no resampling leaves alike, the same at every call."""
    pixels = np.random.default_rng(shape).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
