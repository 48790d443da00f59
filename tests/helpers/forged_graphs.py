"""Decoder graphs of a package as a bad runtime, or a bad export, would have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.helpers.packages import plant

DECODER = "decoder.onnx"


def with_defaults(package: Path) -> None:
    """Give the gate's inputs defaults, as packages once had them: onnxruntime-node ignores such inputs silently."""
    model = _decoder(package)
    for value in model.graph.input:
        if value.name in ("gate", "attn_scale", "mlp_scale"):
            shape = [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
            model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), value.name))
    plant(package, DECODER, model.SerializeToString())


def ignoring_the_gate(package: Path) -> None:
    """A decoder that takes the gate and multiplies it by nothing: the base model, whatever is fed."""
    model = _decoder(package)
    for node in model.graph.node:
        node.input[:] = ["ignored" if name == "gate" else name for name in node.input]
    _insert(
        model, "nothing", np.zeros(1, np.float32), helper.make_node("Mul", ["gate", "nothing"], ["ignored"])
    )
    plant(package, DECODER, model.SerializeToString())


def beyond_memory(package: Path) -> None:
    """A decoder whose logits wait for a tensor that takes all of the four gigabytes that WebAssembly has."""
    model = _decoder(package)
    for node in model.graph.node:
        node.output[:] = ["small" if name == "logits" else name for name in node.output]
    shape = np.array([1_073_000_000], np.int64)
    _insert(model, "room", shape, helper.make_node("ConstantOfShape", ["room"], ["large"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["small", "most"], ["logits"]))
    plant(package, DECODER, model.SerializeToString())


def _decoder(package: Path) -> onnx.ModelProto:
    return onnx.load(package / DECODER, load_external_data=False)


def _insert(model: onnx.ModelProto, name: str, values: NDArray[np.generic], node: onnx.NodeProto) -> None:
    """Put a node that reads a constant before all others."""
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.node.insert(0, node)
