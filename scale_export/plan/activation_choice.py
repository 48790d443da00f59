"""Choosing what a decoder computes in beside integer weights, and what its cache holds."""

from __future__ import annotations

from collections.abc import Iterator

from scale_export.core.errors import UserError
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.words import BLOCKWISE, FloatType, Precision

from .record import float_types
from .targets import BACKEND_ACTIVATIONS, Target


def choose_activations(target: Target, precision: Precision, asked: FloatType | None) -> Target:
    """The target with the activations and the cache that were asked for; as it is where nothing was.

    Raises:
        UserError: weights of that precision, or the target's runtime, leave no such choice.
    """
    if asked is None:
        return target
    if precision == "stored":
        raise UserError(
            "a checkpoint holds weights, and who loads it decides what it computes in: leave --activations out"
        )
    if precision not in BLOCKWISE:
        own = float_types(precision, target)[0]
        if asked == own:
            return target
        raise UserError(
            f"--activations {asked} is refused: {precision} weights compute in {own}; leave it out, or use "
            f"--precision {' or '.join(BLOCKWISE)}"
        )
    known = BACKEND_ACTIVATIONS[target.backend]
    if asked not in known:
        raise UserError(
            f"--activations {asked} is refused: target {target.name} computes in {' or '.join(known)}; leave it out"
        )
    return target.model_copy(update={"activations": asked, "kv_cache": asked})


def activations_reason(target: Target, precision: Precision, asked: FloatType | None) -> Iterator[str]:
    """What follows from float16 activations in ONNX Runtime; a sentence."""
    halves = precision in BLOCKWISE and target.activations == "float16"
    if target.backend != "onnxruntime" or not halves:
        return
    who = "as asked" if asked else f"target {target.name}'s default"
    limits = LOWERING_RELATIVE
    yield (
        f"Activations, block scales and the cache are float16, {who}: the lowering leg holds such graphs to "
        f"{limits['float16']:g}, and those that compute in float32 to {limits['float32']:g}."
    )
