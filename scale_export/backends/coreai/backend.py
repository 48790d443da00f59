"""The Core AI backend as the pipeline sees it: emit a bundle, open it, and what running it here leaves unproved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scale_export.backends.interface import Emission, GraphBackend
from scale_export.core.errors import UserError
from scale_export.core.records import NotChecked
from scale_export.core.words import FloatType
from scale_export.device.coreai.apple import PARITY, load_apple
from scale_export.device.coreai.engine import CoreAIEngine
from scale_export.device.engine import Engine, Tap
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target

from .bundle import DECODER, EMBEDDING, VISION, pixel_shape, refuse_unserved, write_bundle
from .codes import decoder_codes
from .decoder import emit_decoder
from .inputs import emit_embedding, emit_vision

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class CoreAI(GraphBackend):
    """Core AI assets, run by Apple's own runtime. There are no side files: the scalars are the decoder's constants."""

    libraries = ("coreai-core", "coreai-torch")

    def check(self, plan: Plan) -> None:
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

    def emit(self, emission: Emission, directory: Path) -> dict[str, str]:
        vision, shape = emission.base.vision, pixel_shape(emission.tower_inputs)
        dtype = DTYPES[_computes_in(emission)]
        emit_decoder(emission.decoder, directory / DECODER, dtype)
        emit_embedding(emission.decoder.weights, directory / EMBEDDING, dtype)
        tower = DTYPES[emission.vision_precision]
        emit_vision(vision, shape, directory / VISION, dtype=tower, features=dtype)
        _write_bundle(emission, directory)
        return {"decoder": DECODER, "embedding": EMBEDDING, "vision": VISION}

    def remake(self, emission: Emission, directory: Path) -> None:
        """The bundle's own files, and the processor's."""
        _write_bundle(emission, directory)
        super().remake(emission, directory)

    def strict_type(self, computes: FloatType) -> FloatType | None:
        """Apple's runtime on this machine sums float16 products in float16."""
        return "float32" if computes == "float32" else None

    def open_engine(
        self,
        graphs: Mapping[str, Path],
        *,
        context_length: int,
        providers: Sequence[str],
        strict: bool = False,
        tap: Tap | None = None,
    ) -> Engine:
        """Apple's runtime on this machine, which has one set of kernels: ``strict`` changes nothing.

        Raises:
            UserError: a ``tap`` is given; assets can't be looked into.
        """
        if tap is not None:
            raise UserError(
                "Core AI assets cannot be examined: examine a package for target coreml or cpu instead"
            )
        return CoreAIEngine(graphs, context_length=context_length)

    def not_timed(self, target: Target) -> str | None:
        """Apple's runtime for this machine proves graphs, see ``PARITY``."""
        return f"Core AI assets run here for their results alone, which is {PARITY}: choose target cpu, or a size"

    def codes(
        self, graphs: Mapping[str, Path], names: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """As they lie in the decoder."""
        return decoder_codes(graphs["decoder"], names)

    def not_checked(self, target: Target) -> Sequence[NotChecked]:
        return (
            NotChecked(
                "device",
                f"Apple's runtime for this machine ran the assets, which is {PARITY}; placement, arithmetic and speed "
                f"on an Apple device were not seen",
            ),
            NotChecked(
                "Apple's stock engine",
                "it resizes pictures by Core Image and fills in the chat template by itself, and here both were the "
                "package's own processor",
            ),
        )


BACKEND = CoreAI()


@torch.no_grad()
def _write_bundle(emission: Emission, directory: Path) -> None:
    blank = torch.zeros(1, *pixel_shape(emission.tower_inputs))
    write_bundle(emission, directory, emission.base.vision.encode(blank)["image_features"].shape[1])


def _computes_in(emission: Emission) -> FloatType:
    """Float weights decide for themselves; quantized ones leave it to the target."""
    if emission.precision in ("float32", "float16"):
        return emission.precision
    assert emission.target.activations is not None, "targets with graphs state it"
    return emission.target.activations
