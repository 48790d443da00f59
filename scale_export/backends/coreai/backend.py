"""The Core AI backend as the pipeline sees it: emit a bundle, open it, and what running it here leaves unproved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.records import NotChecked
from scale_export.core.words import Precision
from scale_export.device.coreai.apple import PARITY, load_apple
from scale_export.device.coreai.engine import CoreAIEngine
from scale_export.device.engine import Engine, Tap
from scale_export.families._towers.tower import VisionTower
from scale_export.model.blocks import hash_codes
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.record import Plan

from .bundle import DECODER, EMBEDDING, VISION, pixel_shape, refuse_unserved, write_bundle
from .codes import decoder_codes
from .decoder import emit_decoder
from .inputs import emit_embedding, emit_vision

LIBRARIES = ("coreai-core", "coreai-torch")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def check(plan: Plan) -> None:
    """Every refusal, before a weight is loaded.

    Raises:
        UserError: the extra is not installed, or Apple's stock engine can't serve the plan faithfully.
    """
    load_apple("coreai_torch")
    refuse_unserved(plan)
    computes, keeps = plan.float_types
    if computes != keeps:
        raise UserError(
            f"target {plan.target.name} computes in {computes} and keeps a {keeps} cache, but Core AI decoders "
            f"have one type for both: set activations and kv_cache alike"
        )


def emit(
    folded: FoldedDecoder,
    vision: VisionTower,
    plan: Plan,
    directory: Path,
    *,
    precision: Precision,
    vision_precision: Precision,
) -> dict[str, str]:
    """Write the bundle of ``folded`` (already quantized where ``precision`` says so); role → asset.

    Raises:
        UserError: see ``check``.
    """
    check(plan)
    dtype = DTYPES.get(precision) or DTYPES[plan.float_types[0]]
    emit_decoder(folded, directory / DECODER, dtype)
    emit_embedding(folded.weights, directory / EMBEDDING, dtype)
    emit_vision(vision, pixel_shape(plan), directory / VISION, dtype=DTYPES[vision_precision], features=dtype)
    with torch.no_grad():
        tokens = vision.encode(torch.zeros(1, *pixel_shape(plan)))["image_features"].shape[1]
    write_bundle(plan, directory, tokens)
    return {"decoder": DECODER, "embedding": EMBEDDING, "vision": VISION}


def emit_side_files(folded: FoldedDecoder, plan: Plan, directory: Path) -> None:
    """Nothing: the scalars are constants of the decoder."""


def codes(graphs: Mapping[str, Path], names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The integer codes of each named matrix as they lie in the decoder."""
    return decoder_codes(graphs["decoder"], names)


def code_hashes(graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]:
    """SHA-256 of the integer codes of each named matrix."""
    return hash_codes(codes(graphs, names))


def open_engine(
    graphs: Mapping[str, Path], plan: Plan, *, strict: bool = False, tap: Tap | None = None
) -> Engine:
    """Apple's runtime on this machine, which has one set of kernels: ``strict`` changes nothing.

    Raises:
        UserError: a ``tap`` is given; assets can't be looked into.
    """
    if tap is not None:
        raise UserError(
            "Core AI assets cannot be examined: examine a package for target coreml or cpu instead"
        )
    return CoreAIEngine(graphs, context_length=plan.context_length)


def not_timed(plan: Plan) -> str | None:
    """Apple's runtime for this machine proves graphs, see ``PARITY``."""
    return f"Core AI assets run here for their results alone, which is {PARITY}: choose target cpu, or a size"


def not_checked() -> Sequence[NotChecked]:
    """What running the assets here can't prove of a device."""
    return (
        NotChecked(
            "device",
            f"Apple's runtime for this machine ran the assets, which is {PARITY}; placement, arithmetic and speed on "
            f"an Apple device were not seen",
        ),
        NotChecked(
            "Apple's stock engine",
            "it resizes pictures by Core Image and fills in the chat template by itself, and here both were the "
            "package's own processor",
        ),
    )
