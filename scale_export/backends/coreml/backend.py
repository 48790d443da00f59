"""The Core ML backend as the pipeline sees it: emit, open, and what an interpreter leaves unproved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export.backends.interface import Emission, GraphBackend
from scale_export.core.extras import need
from scale_export.core.records import NotChecked, SideFacts
from scale_export.device.coreml import host
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.coreml.predictor import on_device
from scale_export.device.engine import Engine, Tap
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target

from .decoder import residual_scale
from .graphs import GraphPlan, decoder_codes, emit_graphs, write_host_files


class CoreML(GraphBackend):
    """Core ML packages, run by Core ML on a Mac and by the reference interpreter elsewhere.

    There are no side files: ``runtime.json`` holds the scalars that a gated decoder takes as inputs.
    """

    libraries = ("coremltools",)

    def check(self, plan: Plan) -> None:
        """Every refusal, before a weight is loaded.

        Raises:
            UserError: coremltools is not installed, without which there is no converter.
        """
        need("coremltools")

    def emit(self, emission: Emission, directory: Path) -> dict[str, str]:
        return emit_graphs(emission.decoder, emission.base.vision, _graph_plan(emission), directory)

    def remake(self, emission: Emission, directory: Path) -> None:
        """What a host reads by itself, and the processor's files."""
        write_host_files(emission.decoder, emission.base.vision, _graph_plan(emission), directory)
        super().remake(emission, directory)

    def embedding_factor(self, plan: Plan) -> float:
        """The residual stream's, where float16 would not hold it; see ``RESIDUAL_SCALE``."""
        return residual_scale(plan.base.spec, half=plan.precision != "float32")

    def side_facts(self, directory: Path) -> SideFacts:
        """All that ``runtime.json`` says of prompts and scalars."""
        config = host.read_host_config(directory / host.FILE)
        held, scalars = config.scalars, None
        if held is not None:
            scalars = np.array(held.attn_scale, np.float32), np.array(held.mlp_scale, np.float32)
        return SideFacts(
            file=host.FILE,
            scalars=scalars,
            context_length=config.context_length,
            image_token_id=config.image_token_id,
            end_token_ids=tuple(sorted(config.eos_token_ids)),
        )

    def open_engine(
        self,
        graphs: Mapping[str, Path],
        *,
        context_length: int,
        providers: Sequence[str],
        strict: bool = False,
        tap: Tap | None = None,
    ) -> Engine:
        """``strict`` is the interpreter in float32; ``runtime.json`` knows the context, and Core ML no providers."""
        return CoreMLEngine(graphs, strict=strict, tap=tap)

    def not_timed(self, target: Target) -> str | None:
        """An interpreter's speed says nothing of a device."""
        if on_device():
            return None
        return "Core ML packages run in an interpreter here: search on a Mac, or name a size"

    def codes(
        self, graphs: Mapping[str, Path], names: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """As the function with folded scales reads them."""
        parts = [path for role, path in graphs.items() if role.startswith("decoder")]
        return decoder_codes(parts, names)

    def not_checked(self, target: Target) -> Sequence[NotChecked]:
        if on_device():
            return (NotChecked("placement", "Core ML chose the compute units, and none was asked which"),)
        reason = (
            "no Core ML on this system, so compilation, placement and the arithmetic of GPU and Neural Engine did not "
            "run; on a Mac, scale-export verify runs them"
        )
        return (NotChecked("device", reason),)


BACKEND = CoreML()


def _graph_plan(emission: Emission) -> GraphPlan:
    base, target = emission.base, emission.target
    assert emission.prefill_tokens is not None and target.compute_units is not None, "its target states them"
    return GraphPlan(
        precision=emission.precision,
        vision_precision=emission.vision_precision,
        block_size=emission.block_size,
        prefill_tokens=emission.prefill_tokens,
        context_length=emission.context_length,
        max_part_bytes=target.max_part_bytes,
        compute_units=target.compute_units,
        tower_inputs=emission.tower_inputs,
        image_token_id=base.image_token_id,
        rules=base.rules,
        fold=emission.fold,
    )
