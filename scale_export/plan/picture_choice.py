"""Choosing what the graphs take of a prompt with pictures: sizes that a target holds, and how much enters at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from scale_export.core.errors import UserError
from scale_export.core.records import Array, TowerInput
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel

from .targets import Target

PREFILL_STEP = 64
"""What a prefill longer than the target's is rounded up to, and the room that is added for words."""

PICTURES_IN_CONTEXT = 4
"""How many of the largest pictures fill a context, where pictures have as many tokens as their size asks for."""


def fit_pictures(base: BaseModel, target: Target, context_length: int) -> tuple[BaseModel, tuple[str, ...]]:
    """The base with pictures that the target can hold, where they come in patches; and the sentence that says so."""
    if not base.family.patched or target.context_length is None:
        return base, ()
    side, own = target.max_tile_side, dict(base.processor.image_processor.size)
    tokens = context_length // PICTURES_IN_CONTEXT
    size = dict(base.family.fitting_size(base.processor, side=side, tokens=tokens))
    if size == own:
        return base, ()
    room = f"{tokens} tokens, a quarter of the context"
    if side is not None:
        room = f"{room}, and in {side} × {side} pixels"
    return replace(base, picture_size=size), (
        f"Pictures are resized to fit in {room}: the image processor's size is {size} in place of {own}, and it keeps "
        f"a picture's shape as ever.",
    )


def tower_inputs_of(
    base: BaseModel, target: Target, context_length: int, trial: Mapping[str, Array]
) -> dict[str, TowerInput]:
    """What the vision tower takes of a prompt's tile, or of the largest picture; refuses what can't be held."""
    family, runtime = base.family, base.family.runtime_config(base.config)
    limit, tokens = target.max_tile_side, trial["input_ids"].shape[1]
    found = {
        name: TowerInput(shape=value.shape[1:], integer=value.dtype.kind != "f")
        for name, value in family.tower_inputs(trial, runtime).items()
    }
    if family.patched:
        places = family.most_places(base.processor, runtime)
        found = {name: replace(i, shape=(places, *i.shape[1:])) for name, i in found.items()}
    elif limit is not None and max(found["pixel_values"].shape[1:]) > limit:
        height, width = found["pixel_values"].shape[1:]
        raise UserError(
            f"the model takes tiles of {height} × {width} pixels, and target {target.name} allows {limit} per "
            f"side: choose another target"
        )
    if tokens >= context_length:
        raise UserError(
            f"one picture and a word take {tokens} tokens, and the context on target {target.name} holds "
            f"{context_length}: choose another target"
        )
    return found


def check_one_size(base: BaseModel, tower_inputs: Mapping[str, TowerInput]) -> None:
    """Refuse a model without a file of its own whose pictures keep their proportions."""
    wide = encode_messages(base.processor, [user_message([Image.new("RGB", (256, 128))], "?")])
    shape, pixel_shape = base.family.tiles(wide).shape[1:], tower_inputs["pixel_values"].shape
    if shape != pixel_shape:
        raise UserError(
            f"the processor of {base.family.model_type} makes a wide picture {shape[1]} × {shape[2]} pixels and a "
            f"square one {pixel_shape[1]} × {pixel_shape[2]}, and the generic route takes one size: choose a "
            f"supported family, or add one"
        )


def choose_prefill_tokens(
    base: BaseModel, target: Target, trial: Mapping[str, Array]
) -> tuple[int | None, tuple[str, ...]]:
    """The target's T, or what holds the tokens of a prepared prompt that see one another; with a sentence on it."""
    asked = target.prefill_tokens
    groups = base.family.attention_groups(trial, base.family.runtime_config(base.config))
    if asked is None or groups is None:
        return asked, ()
    largest = int(np.bincount(groups[groups >= 0]).max(initial=0))
    if largest <= asked:
        return asked, ()
    held = -(-largest // PREFILL_STEP) * PREFILL_STEP + PREFILL_STEP
    return held, (
        f"The function prefill takes {held} tokens at once, not the target's {asked}: {largest} tokens of a prompt "
        f"with one picture see one another, and more than {held} that do are refused.",
    )
