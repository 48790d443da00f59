"""The Core ML backend as the pipeline sees it: emit, open, and what an interpreter leaves unproved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import NotChecked
from scale_export.core.words import Precision
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.coreml.predictor import on_device
from scale_export.device.engine import Engine, Tap
from scale_export.device.prompts import end_token_ids
from scale_export.families._towers.tower import VisionTower
from scale_export.model.blocks import hash_codes
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.record import Plan

from .graphs import GraphPlan, decoder_codes, emit_graphs

LIBRARIES = ("coremltools",)


def check(plan: Plan) -> None:
    """Nothing that this backend would refuse beyond what the target's file says."""


def emit(
    folded: FoldedDecoder,
    vision: VisionTower,
    plan: Plan,
    directory: Path,
    *,
    precision: Precision,
    vision_precision: Precision,
) -> dict[str, str]:
    """Write the packages of ``folded`` (already quantized where ``precision`` says so); role → file name."""
    base, target = plan.base, plan.target
    assert plan.prefill_tokens is not None and target.compute_units is not None, "its target states them"
    graph_plan = GraphPlan(
        precision=precision,
        vision_precision=vision_precision,
        block_size=plan.block_size,
        prefill_tokens=plan.prefill_tokens,
        context_length=plan.context_length,
        max_part_bytes=target.max_part_bytes,
        compute_units=target.compute_units,
        tower_inputs=plan.tower_inputs,
        image_token_id=base.family.image_token_id(base.config),
        eos_token_ids=sorted(end_token_ids(base.processor, base.directory)),
        fold=plan.fold,
    )
    return emit_graphs(folded, vision, graph_plan, directory)


def emit_side_files(folded: FoldedDecoder, plan: Plan, directory: Path) -> None:
    """Nothing: ``runtime.json`` holds the scalars that a gated decoder takes as inputs."""


def codes(graphs: Mapping[str, Path], names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The integer codes of each named matrix, as the function with folded scales reads them."""
    parts = [path for role, path in graphs.items() if role.startswith("decoder")]
    return decoder_codes(parts, names)


def code_hashes(graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]:
    """SHA-256 of the integer codes of each named matrix."""
    return hash_codes(codes(graphs, names))


def open_engine(
    graphs: Mapping[str, Path], plan: Plan, *, strict: bool = False, tap: Tap | None = None
) -> Engine:
    """Core ML on a Mac, the reference interpreter elsewhere; ``strict`` is the interpreter in float32."""
    return CoreMLEngine(graphs, strict=strict, tap=tap)


def not_timed(plan: Plan) -> str | None:
    """An interpreter's speed says nothing of a device."""
    if on_device():
        return None
    return "Core ML packages run in an interpreter here: search on a Mac, or name a size"


def not_checked() -> Sequence[NotChecked]:
    """What running here can't prove of the device."""
    if on_device():
        return (NotChecked("placement", "Core ML chose the compute units, and none was asked which"),)
    reason = (
        "no Core ML on this system, so compilation, placement and the arithmetic of GPU and Neural Engine did not run; "
        "on a Mac, scale-export verify runs them"
    )
    return (NotChecked("device", reason),)
