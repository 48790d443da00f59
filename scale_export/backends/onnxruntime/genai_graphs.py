"""Fitting a package's graphs to onnxruntime-genai: small graphs over the same external data.

That runtime knows one tensor between tower and embedding and one between embedding and decoder, and feeds the decoder
nothing but those, positions, mask and cache; its decoder may ask for the token ids. So

- ``genai_decoder.onnx`` makes its gate itself, and has the trained scalars as defaults;
- ``genai_vision.onnx`` picks the image tokens' rows from the tower's output, which our host does otherwise;
- where pictures add to the first layers' outputs, those features travel beside the embeddings in one wider tensor,
  and ``genai_embedding.onnx`` and the decoder take it apart;
- where the tokens of a picture see one another, the decoder finds their groups in the token ids.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from scale_export.core.records import DecoderSpec, Float32
from scale_export.core.words import Scope
from scale_export.device.onnxruntime.genai import PLACES

from .defaults import give_defaults


def fit_graphs(
    directory: Path,
    spec: DecoderSpec,
    image_token_id: int,
    *,
    scope: Scope,
    scalars: tuple[Float32, Float32] | None,
) -> dict[str, str]:
    """Write the graphs that must differ, beside the package's own; role → file name of all three to load.

    Args:
        scalars: see ``give_defaults``.
    """
    names = {role: f"{role}.onnx" for role in ("decoder", "embedding", "vision")}
    models = {role: onnx.load(directory / name, load_external_data=False) for role, name in names.items()}
    changed = {"vision", "decoder"}
    give_defaults(models["decoder"].graph, scope, scalars)
    _pick_rows(models["vision"].graph, spec)
    if spec.deepstack_layers:
        changed |= {"embedding"}
        _widen_embedding(models["embedding"].graph, spec, image_token_id)
        _split_embeds(models["decoder"].graph, spec)
    if spec.grouped_attention:
        _find_groups(models["decoder"].graph, image_token_id)
    for role in changed:
        names[role] = f"genai_{role}.onnx"
        (directory / names[role]).write_bytes(models[role].SerializeToString(deterministic=True))
    return names


def _pick_rows(graph: onnx.GraphProto, spec: DecoderSpec) -> None:
    """``image_features [image tokens, D · (1 + deepstack)]`` by ``image_places``."""
    outputs = [output.name for output in graph.output]
    width = spec.hidden_size * len(outputs)
    inner = [_rename(graph, name, f"tower.{name}") for name in outputs]
    del graph.output[:]
    graph.output.append(_info("image_features", TensorProto.FLOAT, ["image_tokens", width]))
    graph.input.append(_info(PLACES, TensorProto.INT64, ["image_tokens", 2]))
    graph.node.extend(
        [
            helper.make_node("Concat", inner, ["tower.features"], axis=-1),
            helper.make_node("GatherND", ["tower.features", PLACES], ["image_features"]),
        ]
    )


def _widen_embedding(graph: onnx.GraphProto, spec: DecoderSpec, image_token_id: int) -> None:
    """``inputs_embeds [B, T, D · (1 + deepstack)]``: beside each image token's features what its layers add, else 0."""
    width, whole = spec.hidden_size, spec.hidden_size * (1 + spec.deepstack_layers)
    dtype = graph.output[0].type.tensor_type.elem_type
    features = _rename(graph, "image_features", "first.image_features")
    words = _rename(graph, "inputs_embeds", "first.inputs_embeds")
    _replace(
        graph.input, "image_features", _info("image_features", TensorProto.FLOAT, ["image_tokens", whole])
    )
    _replace(graph.output, "inputs_embeds", _info("inputs_embeds", dtype, ["batch", "tokens", whole]))
    graph.initializer.extend(
        [
            helper.make_tensor("wide.widths", TensorProto.INT64, [2], [width, whole - width]),
            helper.make_tensor("wide.image_token", TensorProto.INT64, [], [image_token_id]),
            helper.make_tensor("wide.flat", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("wide.axis", TensorProto.INT64, [], [0]),
            helper.make_tensor("wide.none", TensorProto.FLOAT, [1, whole - width], [0.0] * (whole - width)),
        ]
    )
    node = helper.make_node
    before = [node("Split", ["image_features", "wide.widths"], [features, "wide.added"], axis=1)]
    after = [
        # As the words' half counts image tokens: row 0 is for everything that is none, or has no picture.
        node("Equal", ["input_ids", "wide.image_token"], ["wide.is_image"]),
        node("Cast", ["wide.is_image"], ["wide.ones"], to=TensorProto.INT64),
        node("Reshape", ["wide.ones", "wide.flat"], ["wide.ones_flat"]),
        node("CumSum", ["wide.ones_flat", "wide.axis"], ["wide.order_flat"]),
        node("Shape", ["input_ids"], ["wide.shape"]),
        node("Reshape", ["wide.order_flat", "wide.shape"], ["wide.order"]),
        node("Shape", ["image_features"], ["wide.count"], start=0, end=1),
        node("LessOrEqual", ["wide.order", "wide.count"], ["wide.has_picture"]),
        node("And", ["wide.is_image", "wide.has_picture"], ["wide.pictured"]),
        node("Cast", ["wide.pictured"], ["wide.pictured_ones"], to=TensorProto.INT64),
        node("Mul", ["wide.order", "wide.pictured_ones"], ["wide.rows"]),
        node("Concat", ["wide.none", "wide.added"], ["wide.table"], axis=0),
        node("Gather", ["wide.table", "wide.rows"], ["wide.found"]),
        node("Cast", ["wide.found"], ["wide.typed"], to=dtype),
        node("Concat", [words, "wide.typed"], ["inputs_embeds"], axis=-1),
    ]
    _surround(graph, before, after)


def _split_embeds(graph: onnx.GraphProto, spec: DecoderSpec) -> None:
    """One ``inputs_embeds`` of that width in place of ``inputs_embeds`` and ``deepstack.{k}``."""
    dtype = next(i for i in graph.input if i.name == "inputs_embeds").type.tensor_type.elem_type
    parts, width = [f"deepstack.{k}" for k in range(spec.deepstack_layers)], spec.hidden_size
    embeds = _rename(graph, "inputs_embeds", "first.inputs_embeds")
    whole = _info("inputs_embeds", dtype, ["batch", "tokens", width * (1 + len(parts))])
    _replace(graph.input, "inputs_embeds", whole)
    for part in parts:
        _replace(graph.input, part, None)
    widths = helper.make_tensor(
        "wide.widths", TensorProto.INT64, [1 + len(parts)], [width] * (1 + len(parts))
    )
    graph.initializer.append(widths)
    split = helper.make_node("Split", ["inputs_embeds", "wide.widths"], [embeds, *parts], axis=-1)
    _surround(graph, [split], [])


def _find_groups(graph: onnx.GraphProto, image_token_id: int) -> None:
    """``input_ids`` in place of ``attention_group``: a group for every unbroken run of image tokens, −1 elsewhere."""
    _replace(graph.input, "attention_group", _info("input_ids", TensorProto.INT64, ["batch", "tokens"]))
    constants = {"image_token": [image_token_id], "one": [1], "outside": [-1]}
    graph.initializer.extend(
        helper.make_tensor(f"group.{name}", TensorProto.INT64, [], value) for name, value in constants.items()
    )
    graph.initializer.append(helper.make_tensor("group.shift", TensorProto.INT64, [4], [0, 1, 0, -1]))
    node = helper.make_node
    before = [
        node("Equal", ["input_ids", "group.image_token"], ["group.is_image"]),
        node("Cast", ["group.is_image"], ["group.ones"], to=TensorProto.INT64),
        node("Pad", ["group.ones", "group.shift"], ["group.before"]),
        node("Greater", ["group.ones", "group.before"], ["group.starts"]),
        node("Cast", ["group.starts"], ["group.start_ones"], to=TensorProto.INT64),
        node("CumSum", ["group.start_ones", "group.one"], ["group.count"]),
        node("Sub", ["group.count", "group.one"], ["group.index"]),
        node("Where", ["group.is_image", "group.index", "group.outside"], ["attention_group"]),
    ]
    _surround(graph, before, [])


def _rename(graph: onnx.GraphProto, old: str, new: str) -> str:
    """Call a value something else wherever nodes name it; ``new``."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    return new


def _replace(
    values: MutableSequence[onnx.ValueInfoProto], name: str, new: onnx.ValueInfoProto | None
) -> None:
    """Put another graph input or output, or none, in the place of the one of that name."""
    kept = [new if value.name == name else value for value in values]
    del values[:]
    values.extend(value for value in kept if value is not None)


def _info(name: str, dtype: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _surround(graph: onnx.GraphProto, before: list[onnx.NodeProto], after: list[onnx.NodeProto]) -> None:
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
