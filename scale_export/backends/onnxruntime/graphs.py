"""Emitting all graphs of a package, and reading back what was emitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from scale_export.core.records import Float32, TowerInput
from scale_export.core.words import Precision
from scale_export.families._towers.tower import VisionTower
from scale_export.model.folding import FoldedDecoder

from .decoder import block_codes, emit_decoder
from .embedding import emit_embedding
from .kernels import GraphOptions
from .vision import emit_vision


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """What the graphs of one package have in common beside the weights."""

    options: GraphOptions
    vision_precision: Precision
    context_length: int
    image_token_id: int
    tower_inputs: Mapping[str, TowerInput]
    patched: bool


def emit_graphs(
    folded: FoldedDecoder, vision: VisionTower, plan: GraphPlan, directory: Path
) -> dict[str, str]:
    """Write every graph into ``directory``; role → file name.

    Args:
        folded: quantized where ``plan.options`` name a quantized precision.
        vision: the tower with its projector, float32; see ``Family.vision_module``.
    """
    decoder = directory / graph_files(folded)["decoder"]
    emit_decoder(
        folded.weights, decoder, options=plan.options, context_length=plan.context_length, gated=folded.gate
    )
    graphs = graph_files(folded)
    if folded.scaled is not None:
        _emit_folded_twin(folded, plan, decoder, directory / graphs["decoder_folded"])
    emit_embedding(
        folded.weights,
        directory / graphs["embedding"],
        options=plan.options,
        image_token_id=plan.image_token_id,
    )
    _share(directory / graphs["embedding"], decoder, _same_table(directory / graphs["embedding"], decoder))
    emit_vision(
        vision,
        plan.tower_inputs,
        directory / graphs["vision"],
        patched=plan.patched,
        precision=plan.vision_precision,
    )
    return graphs


def graph_files(folded: FoldedDecoder) -> dict[str, str]:
    """Role → file of every graph of a package."""
    graphs = {"decoder": "decoder.onnx", "vision": "vision.onnx", "embedding": "embedding.onnx"}
    return graphs if folded.scaled is None else {**graphs, "decoder_folded": "decoder_folded.onnx"}


def _emit_folded_twin(folded: FoldedDecoder, plan: GraphPlan, decoder: Path, path: Path) -> None:
    """A second decoder graph that shares the first one's external data but for the tensors that folding changes."""
    assert folded.scaled is not None
    emit_decoder(folded.scaled, path, options=plan.options, context_length=plan.context_length, gated=False)
    own = {f"{name}{suffix}" for name in folded.factors for suffix in ("", ".scales", ".bias")}
    names = [str(name) for name in ir.load(path).graph.initializers if name not in own]
    _share(path, decoder, {name: name for name in names})


TABLE = {"embed_tokens.codes": "lm_head.codes", "embed_tokens.scales": "lm_head.scales"}
"""Tensors of the embedding graph → those of the decoder that they are where the output head is tied to the table."""


def _same_table(embedding: Path, decoder: Path) -> dict[str, str]:
    """Those of ``TABLE`` that hold the same bytes, whatever their shapes."""
    words, first = (ir.load(path).graph.initializers for path in (embedding, decoder))

    def values(initializers: Mapping[str, ir.Value], name: str) -> NDArray[np.generic] | None:
        tensor = initializers[name].const_value if name in initializers else None
        return None if tensor is None else tensor.numpy().reshape(-1)

    same = {}
    for name, other in TABLE.items():
        own, there = values(words, name), values(first, other)
        if own is not None and there is not None and own.dtype == there.dtype and np.array_equal(own, there):
            same[name] = other
    return same


def _share(path: Path, other: Path, names: Mapping[str, str]) -> None:
    """Let tensors of a graph (its name → the other graph's) lie in the other one's data; all else is written anew."""
    graph, there = ir.load(path), ir.load(other).graph.initializers
    shared = {}
    for own, name in names.items():
        tensor = there[name].const_value if name in there else None
        if isinstance(tensor, ir.ExternalTensor):
            shared[own] = tensor
    if not shared:
        return
    kept: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for name, value in graph.graph.initializers.items():
        held = value.const_value
        if name in shared:
            assert value.shape is not None, "an initializer has a shape"
            value.const_value = _placed(shared[name], str(name), value.shape)
        elif isinstance(held, ir.ExternalTensor):
            kept.append((value, ir.tensor(held.numpy().copy(), name=value.name)))
    data = path.with_name(f"{path.name}.data")
    data.unlink()
    if kept:
        own_tensors = [tensor for _, tensor in kept]
        external = ir.external_data.convert_tensors_to_external(own_tensors, path.parent, data.name)
        for (value, _), tensor in zip(kept, external, strict=True):
            value.const_value = tensor
    ir.save(graph, path)


def _placed(tensor: ir.ExternalTensor, name: str, shape: ir.Shape) -> ir.ExternalTensor:
    """The same bytes of the same file under another name and shape."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=shape,
        name=name,
        base_dir=tensor.base_dir,
    )


def decoder_codes(decoder: Path, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The integer codes of each named matrix in an emitted decoder, laid out as ``BlockMatrix.codes``."""
    initializers = ir.load(decoder).graph.initializers
    for name in names:
        codes = initializers[f"{name}.codes"].const_value
        assert codes is not None, "an initializer has a value"
        found = codes.numpy()
        yield name, block_codes(found) if codes.dtype == ir.DataType.INT8 else found


def write_adapter(attn: Float32, mlp: Float32, path: Path) -> None:
    """Write the scalars as ONNX Runtime's ``.onnx_adapter``, to be swapped in at run time."""
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    values = {"attn_scale": attn, "mlp_scale": mlp}
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    adapter.export_adapter(str(path))
