"""Writing the files of a Core ML package: decoder parts, vision tower, host tables and host configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export import mil
from scale_export.core.records import Array, DecoderSpec, TowerInput
from scale_export.core.words import ComputeUnits, FoldMode, Precision
from scale_export.device.coreml import host
from scale_export.device.coreml.tables import CODES, EMBEDDING, SCALES, write_tables
from scale_export.device.rules import GenerationRules
from scale_export.families._towers.tower import VisionTower
from scale_export.mil.program import Literal
from scale_export.model.blocks import Bits, BlockMatrix
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights

from . import swift
from .convert import constant_name
from .decoder import Storage, emit_part, residual_scale, split_layers
from .vision import ScaledFeatures, emit_vision

TABLES = "tables.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """What emission needs beside weights.

    Attributes:
        tower_inputs: of one tile, or of the largest picture.
        max_part_bytes: the most bytes of matrices in one part of the decoder; None for one part.
    """

    precision: Precision
    vision_precision: Precision
    block_size: int
    prefill_tokens: int
    context_length: int
    max_part_bytes: int | None
    compute_units: ComputeUnits
    tower_inputs: Mapping[str, TowerInput]
    image_token_id: int
    rules: GenerationRules
    fold: FoldMode


def emit_graphs(
    folded: FoldedDecoder, vision: VisionTower, plan: GraphPlan, directory: Path
) -> dict[str, str]:
    """Write everything; role → file name."""
    spec = folded.weights.spec
    storage = _storage(plan)
    graphs = {}
    for part in decoder_parts(folded, plan):
        emit_part(
            folded,
            range(part.first, part.stop),
            directory / part.file,
            storage=storage,
            capacity=cache_slots(spec, plan),
            prefill_tokens=plan.prefill_tokens,
        )
        graphs[part.file.removesuffix(".mlpackage").partition("of")[0]] = part.file
    scaled = ScaledFeatures(vision, residual_scale(spec, half=storage.half))
    emit_vision(
        scaled, plan.tower_inputs, directory / "vision.mlpackage", half=plan.vision_precision == "float16"
    )
    write_host_files(folded, vision, plan, directory)
    return {**graphs, "vision": "vision.mlpackage", "tables": TABLES, "runtime": host.FILE}


def decoder_parts(folded: FoldedDecoder, plan: GraphPlan) -> list[host.DecoderPart]:
    """The packages of the decoder, in order."""
    weights = folded.weights
    other_bits = weights.other_bits if isinstance(weights, QuantizedWeights) else {}
    ranges = split_layers(weights.spec, _storage(plan), plan.max_part_bytes, other_bits)
    names = [f"decoder_{number}of{len(ranges)}" for number in range(1, len(ranges) + 1)]
    if len(ranges) == 1:
        names = ["decoder"]
    return [
        host.DecoderPart(file=f"{name}.mlpackage", first=layers.start, stop=layers.stop)
        for name, layers in zip(names, ranges, strict=True)
    ]


def write_host_files(folded: FoldedDecoder, vision: VisionTower, plan: GraphPlan, directory: Path) -> None:
    """Write what the host reads by itself: tables, ``runtime.json``, and the Swift sample where it covers the model."""
    spec, storage = folded.weights.spec, _storage(plan)
    scale = residual_scale(spec, half=storage.half)
    scaled = ScaledFeatures(vision, scale)
    constants = {name: value.numpy().astype(np.float32) for name, value in scaled.constants.items()}
    write_tables(embedding_table(folded.weights, storage, scale), constants, directory / TABLES)
    config = host.HostConfig(
        fold=plan.fold,
        compute_units=plan.compute_units,
        prefill_tokens=plan.prefill_tokens,
        cache_slots=cache_slots(spec, plan),
        context_length=plan.context_length,
        hidden_size=spec.hidden_size,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        rotaries=tuple(
            host.RotaryTable(inv_freq=list(r.inv_freq), axes=list(r.axes), scale=r.scale)
            for r in spec.rotaries
        ),
        image_token_id=plan.image_token_id,
        eos_token_ids=sorted(plan.rules.end_tokens),
        decoder=tuple(decoder_parts(folded, plan)),
        scalars=scalar_defaults(folded),
    )
    host.write_host_config(config, directory / host.FILE)
    if swift.covers(spec, plan.tower_inputs, plan.rules):
        quantized = isinstance(folded.weights, QuantizedWeights)
        shape = plan.tower_inputs["pixel_values"].shape
        swift.write_swift(config, quantized, shape, directory / swift.FILE)


def _storage(plan: GraphPlan) -> Storage:
    return Storage(precision=plan.precision, block_size=plan.block_size)


def cache_slots(spec: DecoderSpec, plan: GraphPlan) -> int:
    """Slots of the KV cache, a multiple of ``prefill_tokens``.

    Where ``decode`` can't stand in for ``prefill`` (it holds other weights, or is given a group of tokens that see one
    another), a padded chunk fits behind any token of the context: it may begin anywhere, as none ends within a group.
    """
    needed = plan.context_length
    if plan.fold == "two-phase" or spec.grouped_attention:
        needed += plan.prefill_tokens - 1
    return -(-needed // plan.prefill_tokens) * plan.prefill_tokens


def embedding_table(weights: DecoderWeights, storage: Storage, scale: float) -> dict[str, Array]:
    """The embedding, times ``scale``, in one of the layouts of ``tables``."""
    if not isinstance(weights, QuantizedWeights):
        table = weights.embedding().numpy() * np.float32(scale)
        return {EMBEDDING: table.astype(np.float16 if storage.half else np.float32)}
    block = weights.block("embedding")
    assert block.bits == 8, "the plan says so"
    codes = (block.integers().astype(np.int16) - 128).astype(np.int8)
    return {CODES: codes, SCALES: (block.scales * np.float32(scale)).astype(np.float16)}


def scalar_defaults(folded: FoldedDecoder) -> host.ScalarDefaults | None:
    """The scalars that a host feeds unless it is told others; None where no scalar is an input."""
    if not folded.gate:
        return None
    attn, mlp = folded.dense()
    return host.ScalarDefaults(
        scope=folded.coefficients.scope, attn_scale=attn.tolist(), mlp_scale=mlp.tolist()
    )


def decoder_codes(parts: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The integer codes of each named matrix as function ``decode`` reads them, in the bytes of ``BlockMatrix``."""
    wanted = {constant_name(name): name for name in names}
    for part in parts:
        operations = mil.load(part).functions["decode"].operations
        constants = {op.outputs[0][0]: op.inputs["val"][0] for op in operations if op.type == "const"}
        for operation in operations:
            if operation.name in wanted and operation.type == "constexpr_blockwise_shift_scale":
                codes = operation.inputs["data"][0]
                if isinstance(codes, str):
                    codes = constants[codes]
                assert isinstance(codes, Literal), "codes are constants"
                yield wanted[operation.name], _packed(codes)


def _packed(codes: Literal) -> NDArray[np.uint8]:
    bits: Bits = 4 if codes.type.dtype == "int4" else 8
    unsigned = (codes.read().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return BlockMatrix.packed(unsigned, bits)
