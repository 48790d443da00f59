"""The ONNX Runtime backend as the pipeline sees it: emit, open, and the strictest kernels to measure against."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from scale_export.core.records import NotChecked
from scale_export.core.words import Precision
from scale_export.device.engine import Engine, Tap
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.onnxruntime.genai import CONFIG, MODEL_TYPES
from scale_export.device.prompts import end_token_ids
from scale_export.families._towers.tower import VisionTower
from scale_export.model.blocks import hash_codes
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.record import Plan

from .genai import genai_config
from .genai_graphs import fit_graphs
from .graphs import GraphPlan, decoder_codes, emit_graphs, write_adapter
from .kernels import GraphOptions

ADAPTER = "scale.onnx_adapter"
LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "onnxscript")


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
    """Write the graphs of ``folded`` (already quantized where ``precision`` says so); role → file name."""
    options = GraphOptions(
        precision=precision, block_size=plan.block_size, accuracy_level=plan.target.accuracy_level or 0
    )
    graph_plan = GraphPlan(
        options=options,
        vision_precision=vision_precision,
        context_length=plan.context_length,
        image_token_id=plan.base.family.image_token_id(plan.base.config),
        tower_inputs=plan.tower_inputs,
        patched=plan.base.family.patched,
    )
    return emit_graphs(folded, vision, graph_plan, directory)


def emit_side_files(folded: FoldedDecoder, plan: Plan, directory: Path) -> None:
    """Write the scalars in the runtime's own format, where the graph can take them, and onnxruntime-genai's files.

    The latter only where that runtime was seen to run the package as ours does: its families, one decoder, on the CPU,
    activations in floats.
    """
    if folded.gate:
        attn, mlp = folded.dense()
        write_adapter(attn, mlp, directory / ADAPTER)
    only_cpu = plan.target.execution_providers == ("CPUExecutionProvider",)
    as_ours = folded.scaled is None and only_cpu and not plan.static
    if plan.base.family.model_type in MODEL_TYPES and as_ours:
        _emit_genai(plan, directory)


def _emit_genai(plan: Plan, directory: Path) -> None:
    base = plan.base
    token = base.family.image_token_id(base.config)
    config = genai_config(
        base.spec,
        base.config,
        fit_graphs(directory, base.spec, token),
        image_token_id=token,
        end_token_ids=end_token_ids(base.processor, base.directory),
        context_length=plan.context_length,
    )
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def codes(graphs: Mapping[str, Path], names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The integer codes of each named matrix, in the decoder that holds the folded scales."""
    return decoder_codes(graphs.get("decoder_folded", graphs["decoder"]), names)


def code_hashes(graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]:
    """SHA-256 of the integer codes of each named matrix."""
    return hash_codes(codes(graphs, names))


def open_engine(
    graphs: Mapping[str, Path], plan: Plan, *, strict: bool = False, tap: Tap | None = None
) -> Engine:
    """Sessions on this machine, with the target's execution providers.

    ``strict`` runs the same graphs on kernels that round nothing (accuracy level 0).
    """
    providers = plan.target.execution_providers or ()
    return OnnxEngine(graphs, context_length=plan.context_length, providers=providers, strict=strict, tap=tap)


def not_timed(plan: Plan) -> str | None:
    """Another provider's speed says nothing of the target's."""
    missing = set(plan.target.execution_providers or ()) - set(ort.get_available_providers())
    if not missing:
        return None
    return f"ONNX Runtime here has no {', '.join(sorted(missing))}: search on the device, or name a size"


def not_checked() -> Sequence[NotChecked]:
    """What running here can't prove of the device: nothing, since the target's providers ran."""
    return ()
