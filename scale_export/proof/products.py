"""Where one run of a decoder departs from another, matrix product by matrix product.

The first product whose input departs points at what lies before it (attention, scalars, norms); the first whose input
is right and whose output departs points at its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scale_export.core.compare import relative_error, within_limit, worst_of
from scale_export.core.records import Array, DecoderSpec, Float32
from scale_export.device.engine import Held, Step
from scale_export.device.generation import EmbeddedPrompt, Generator

ONE_HEAD = 0.05
"""How much of a departure one head's columns may leave unexplained, and still be its only cause."""
SMALLEST = 1e-30

Product = tuple[Float32, Float32]
"""What went into a matrix ``[B, T, in]`` and what came out ``[B, T, out]``."""

Forward = dict[str, Product]
"""Matrix → its product, in the order of the decoder."""


class Recorder:
    """A ``Tap`` that keeps every product, forward by forward."""

    def __init__(self) -> None:
        self.forwards: list[Forward] = []

    def begin(self) -> None:
        """A new forward."""
        self.forwards.append({})

    def __call__(self, name: str, given: Array, found: Array) -> None:
        product = given.astype(np.float32), found.astype(np.float32)
        earlier = self.forwards[-1].get(name)
        if earlier is not None and name != "lm_head":  # a further chunk; of the head only the last row counts
            product = (
                np.concatenate((earlier[0], product[0]), 1),
                np.concatenate((earlier[1], product[1]), 1),
            )
        self.forwards[-1][name] = product


def follow(
    asked: Generator,
    prompt: EmbeddedPrompt,
    after: Sequence[Step],
    begin: Callable[[], None],
    held: Held | None = None,
) -> None:
    """A prompt and generated tokens, all embedded already, through one engine; ``begin`` before each forward.

    Over a cache that begins with ``held``, or an empty one.
    """
    cache = None if held is None else asked.engine.held_cache(held)
    watched = _Watched(
        engine=asked.engine,
        family=asked.family,
        fold=asked.fold,
        image_token_id=asked.image_token_id,
        runtime_config=asked.runtime_config,
        scalars=asked.scalars,
        begin=begin,
    )
    filled = watched.prefill_embedded(prompt, cache).cache
    for step in after:
        watched.forward(filled, step)


@dataclass(kw_only=True)
class _Watched(Generator):
    """A generator that says when a forward begins."""

    begin: Callable[[], None]

    def forward(self, cache: object, step: Step) -> Float32:
        self.begin()
        return super().forward(cache, step)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Departure:
    """The first product that departs, at its input or at its output.

    Attributes:
        error: max |Δ| / max |value| of that side.
    """

    matrix: str
    at_input: bool
    expected: Product
    found: Product
    error: float


def first_departure(reference: Sequence[Forward], other: Sequence[Forward], limit: float) -> Departure | None:
    """The first side of a product, in the order of execution, whose error is not within ``limit``."""
    for expected, found in zip(reference, other, strict=True):
        for name, product in expected.items():
            for side in (0, 1):
                error = relative_error(product[side], found[name][side])
                if not within_limit(error, limit):
                    return Departure(
                        matrix=name, at_input=side == 0, expected=product, found=found[name], error=error
                    )
    return None


def largest_error(reference: Sequence[Forward], other: Sequence[Forward]) -> float:
    """The largest error of any product's input or output; infinite where there is no product."""
    return worst_of(
        [
            relative_error(product[side], found[name][side])
            for expected, found in zip(reference, other, strict=True)
            for name, product in expected.items()
            for side in (0, 1)
        ]
    )


def explain(departure: Departure, spec: DecoderSpec, limit: float) -> tuple[str, str]:
    """The part of the decoder where it departs, and what was seen in words."""
    name = departure.matrix
    if not departure.at_input:
        factor = _common_factor(departure.expected[1], departure.found[1])
        much = "" if factor is None else f": its products are {factor:.3g} times the reference's"
        return (
            name,
            f"{name} is given the right input and gives another output{much}; see its weights and scales",
        )
    _, layer, part = f"layers.{spec.num_layers}.q_proj".split(".") if name == "lm_head" else name.split(".")
    if part == "o_proj":
        return _explain_heads(departure, int(layer), spec.num_heads, limit)
    if part in ("q_proj", "k_proj", "v_proj") and layer != "0":
        place = f"layers.{int(layer) - 1}.mlp"
        cause = f"the MLP scalar of layer {int(layer) - 1} and the norms after it"
    else:
        place, cause = {
            "down_proj": (f"layers.{layer}.activation", f"the activation of layer {layer}"),
            "gate_proj": (f"layers.{layer}.mlp_norm", "the norm before it"),
            "up_proj": (f"layers.{layer}.mlp_norm", "the norm before it"),
        }.get(part, ("layers.0.input_norm", "the first norm"))
    return place, f"what enters {name} departs; see {cause}"


def _explain_heads(departure: Departure, layer: int, heads: int, limit: float) -> tuple[str, str]:
    """Which heads depart, and where: at the last token only (scalars) or before it too (attention)."""
    expected, found = (
        side[0].reshape(*side[0].shape[:2], heads, -1) for side in (departure.expected, departure.found)
    )
    away = ~(np.abs(found - expected) <= limit * np.abs(expected).max())  # NaN departs
    wrong = [int(head) for head in np.flatnonzero(away.any(axis=(0, 1, 3)))]
    words = f"the output of {len(wrong)} of {heads} heads of layer {layer} departs"
    if not wrong or away[:, :-1].any():
        return (
            f"layers.{layer}.attention",
            f"{words} before the last token; see positions, masks and the cache",
        )
    factor = _common_factor(expected[:, -1, wrong[0]], found[:, -1, wrong[0]])
    much = "" if factor is None else f", head {wrong[0]} by a factor of {factor:.3g}"
    place = f"layers.{layer}.head.{wrong[0]}" if len(wrong) == 1 else f"layers.{layer}.heads"
    return place, f"{words} at the last token only{much}; see the heads' scalars"


def _common_factor(expected: Float32, found: Float32) -> float | None:
    """r where ``found`` is r times ``expected`` all over, else None."""
    size = float((expected * expected).sum())
    if not size or not np.isfinite(found).all():
        return None
    factor = float((expected * found).sum()) / size
    rest = np.abs(found - factor * expected).max()
    return factor if rest <= 1e-3 * np.abs(expected).max() else None


def folded_head(departure: Departure, weight: Float32, heads: int) -> tuple[int, float] | None:
    """The one head of ``o_proj [out, in]`` whose columns carry a wrong factor, and that factor; None if not one."""
    (x, expected), (_, found) = departure.expected, departure.found
    away = (found - expected).reshape(-1, found.shape[-1])
    if not np.isfinite(away).all():
        return None
    inputs = x.reshape(-1, heads, x.shape[-1] // heads)
    columns = weight.reshape(weight.shape[0], heads, -1)
    shares = [inputs[:, head] @ columns[:, head].T for head in range(heads)]
    factors = [float((away * share).sum() / max((share * share).sum(), SMALLEST)) for share in shares]
    rests = [float(np.abs(away - f * share).max()) for f, share in zip(factors, shares, strict=True)]
    head = int(np.argmin(rests))
    return (head, 1 + factors[head]) if rests[head] <= ONE_HEAD * np.abs(away).max() else None
