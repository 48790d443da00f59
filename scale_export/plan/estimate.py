"""What an export will take of disk and time: bytes from shapes, time from what was measured at published sizes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from scale_export.core.errors import UserError
from scale_export.core.words import Precision
from scale_export.model.base import BaseModel
from scale_export.quantize import load_quantizer

from .bits import fixed_bits
from .record import Plan

FLOAT_BYTES: Mapping[Precision, int] = {"float32": 4, "float16": 2}
START: Final = 30.0
"""Seconds that any export takes, of the smallest models."""
SECONDS_PER_GB: Mapping[str, tuple[float, float]] = {
    "onnxruntime": (100.0, 235.0),
    "checkpoint": (30.0, 80.0),
}
"""Backend → the least and the most that a GB of the base's weights took on two cores, proof included without a task leg
(docs/benchmarks.md, published sizes). Others were not measured."""


def shapes_of(plan: Plan) -> Mapping[str, tuple[int, int]]:
    """``(out, in)`` of every matrix, the embedding among them."""
    spec = plan.base.spec
    shapes = {name: (out, width) for name, (out, width, _) in spec.linears().items()}
    return {**shapes, "embedding": (spec.vocab_size, spec.hidden_size)}


def block_bytes(plan: Plan, out: int, width: int, bits: int) -> int:
    """Of a matrix's codes and scales in blocks, at that width."""
    blocks = -(-width // plan.block_size)
    scale = 2 if plan.float_types[0] == "float16" else 4
    return out * blocks * (plan.block_size * bits // 8 + scale)


def shares_table(plan: Plan) -> bool:
    """Whether a package of the plan stores an embedding table that is the output head once, where their bits agree."""
    if plan.quantizer is None or plan.static or plan.target.backend != "onnxruntime":
        return False
    return plan.base.stored_weights.tied and not load_quantizer(plan.quantizer).scales_columns


def stored_bytes(plan: Plan, name: str, bits: int, *, shared: bool) -> int:
    """What a matrix, or the embedding, takes at that width; ``shared``: whether the head holds the table's codes."""
    out, width = shapes_of(plan)[name]
    if not (shared and name == "embedding"):
        return block_bytes(plan, out, width, bits)
    same = plan.base.spec.embedding_scale == 1
    return 0 if same else block_bytes(plan, out, width, 0)


def reach(plan: Plan) -> tuple[int, int]:
    """Bytes of all codes and scales with 4 bits wherever the target lets them, and with 8."""
    fixed, shared = fixed_bits(plan.target), shares_table(plan)
    least, most = (
        sum(stored_bytes(plan, name, fixed.get(name, bits), shared=shared) for name in shapes_of(plan))
        for bits in (4, 8)
    )
    return least, most


def matrix_bytes(plan: Plan, only: Collection[str] | None = None) -> int:
    """Of the decoder's matrices and the embedding as the plan writes them, or of ``only`` those named; exact."""
    total, bits_of = 0, {name: plan.other_bits.get(name, plan.bits) for name in ("embedding", "lm_head")}
    shared = bits_of["embedding"] == bits_of["lm_head"] and shares_table(plan)
    for name, (out, width) in shapes_of(plan).items():
        if only is not None and name not in only:
            continue
        if plan.precision in FLOAT_BYTES:
            total += out * width * FLOAT_BYTES[plan.precision]
        elif plan.static and name != "embedding":
            total += out * (width + 4)
        elif plan.static:
            total += 4 * out * width
        else:
            total += stored_bytes(plan, name, plan.other_bits.get(name, plan.bits), shared=shared)
    return total


def check_package_size(plan: Plan, *, under_budget: bool) -> None:
    """Refuse, before anything is written, matrices that alone are larger than the target's packages.

    Args:
        plan: what is to be written.
        under_budget: whether a search is still to choose bits, and may come down to 4 everywhere.

    Raises:
        UserError: they take more than ``max_package_bytes``, or one file more than ``max_file_bytes``.
    """
    if plan.precision == "stored":
        return
    _check_files(plan, under_budget=under_budget)
    limit = plan.target.max_package_bytes
    if limit is None:
        return
    least = reach(plan)[0] if under_budget else matrix_bytes(plan)
    if least > limit:
        raise UserError(
            f"the decoder's matrices and the embedding alone take {least:,} bytes, and target {plan.target.name} "
            f"allows packages of {limit:,}: choose a smaller --precision or another target"
        )


def _check_files(plan: Plan, *, under_budget: bool) -> None:
    """Refuse a file that is larger than the target takes, whatever bits a search under a budget may choose."""
    limit = plan.target.max_file_bytes
    if limit is None:
        return
    if under_budget:
        fixed = fixed_bits(plan.target)
        plan = replace(plan, other_bits={name: fixed.get(name, 4) for name in shapes_of(plan)})
    embedding = matrix_bytes(plan, ("embedding",))
    sizes = {
        "the decoder's matrices": matrix_bytes(plan) - embedding,
        "the embedding": embedding,
        "the vision tower": _tower_bytes(plan),
    }
    for what, size in sizes.items():
        if size > limit:
            raise UserError(
                f"{what} would take about {size:,} bytes in one file, and target {plan.target.name} takes files of "
                f"{limit:,} at most: choose a smaller --precision, a smaller model or another target"
            )


def estimates(plan: Plan, *, under_budget: bool = False) -> Iterator[str]:
    """About how large the package will be and how long the export takes; a sentence each.

    ``under_budget`` as in ``check_package_size``.
    """
    stored = _stored_bytes(plan.base)
    if plan.precision == "stored":
        yield f"The checkpoint will take about {_size(stored)}, as the base model's weights do."
    elif under_budget:
        (least, most), tower = reach(plan), _tower_bytes(plan)
        yield (
            f"The package will take about {_size(least + tower)} to {_size(most + tower)}, as the budget chooses: the "
            f"decoder's matrices and the embedding {_size(least)} at 4 bits and {_size(most)} at 8, the vision tower "
            f"about {_size(tower)}."
        )
    else:
        matrices, tower = matrix_bytes(plan), _tower_bytes(plan)
        yield (
            f"The package will take about {_size(matrices + tower)}: the decoder's matrices and the embedding "
            f"{_size(matrices)}, the vision tower about {_size(tower)}."
        )
        large = plan.target.max_unwarned_bytes
        if large is not None and matrices + tower > large:
            yield (
                f"That is more than {_size(large)}, beyond which many devices of target {plan.target.name} may not "
                f"open it."
            )
    rates = SECONDS_PER_GB.get(plan.target.backend)
    if rates is None:
        yield f"How long an export for {plan.target.name} takes by the size of its model was not measured."
        return
    short, long = (_time(START + rate * stored / 1e9) for rate in rates)
    about = short if short == long else f"{short} to {long}"
    yield f"It takes about {about} on two cores, and more for the questions of a task leg and for calibration."


def _stored_bytes(base: BaseModel) -> int:
    checkpoint = base.checkpoint
    return sum(math.prod(checkpoint.shape(name)) * _width(base, name) for name in checkpoint.stored_names())


def _tower_bytes(plan: Plan) -> int:
    """What the checkpoint holds beside the decoder's matrices and the embedding; an output head may be tied to it."""
    checkpoint = plan.base.checkpoint
    values = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.stored_names())
    tied = not any(name.endswith("lm_head.weight") for name in checkpoint.stored_names())
    decoder = sum(
        math.prod(shape) for name, shape in shapes_of(plan).items() if not (tied and name == "lm_head")
    )
    return max(0, round((1 - decoder / values) * _stored_bytes(plan.base)))


def _width(base: BaseModel, name: str) -> int:
    """Bytes of a value."""
    return {"F64": 8, "F32": 4}.get(base.checkpoint.stored_as(name).dtype, 2)


def _size(count: int) -> str:
    """``1.2 MB``, ``3.5 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{round(seconds, -1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
