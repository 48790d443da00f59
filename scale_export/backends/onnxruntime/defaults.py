"""A decoder for runtimes that feed nothing of their own: the gate is made inside, and the scalars have defaults.

It is a small graph over the decoder's own data. ``.onnx_adapter`` files and onnxruntime-genai need it; a host that
feeds a graph by itself does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from scale_export.core.records import Float32
from scale_export.core.words import Scope
from scale_export.device.onnxruntime.host import GATE, SCALARS

FILE: Final = "decoder_defaults.onnx"


def write_defaults(decoder: Path, scope: Scope, scalars: tuple[Float32, Float32] | None, path: Path) -> None:
    """Write the graph ``path`` beside the ``decoder`` that it is made of; see ``give_defaults``."""
    model = onnx.load(decoder, load_external_data=False)
    give_defaults(model.graph, scope, scalars)
    path.write_bytes(model.SerializeToString(deterministic=True))


def give_defaults(graph: onnx.GraphProto, scope: Scope, scalars: tuple[Float32, Float32] | None) -> None:
    """Make the gate of every forward (its last token, or all of ``scope`` ``all``), and let the scalars be left out.

    Args:
        scalars: ``[L, H]`` and ``[L]`` of a gated graph, which stay inputs; None of one that takes none.
    """
    kept = [value for value in graph.input if value.name != GATE]
    del graph.input[:]
    graph.input.extend(kept)
    for name, value in zip(SCALARS, scalars or (), strict=False):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
    nodes = [*_gate_nodes(graph, scope), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _gate_nodes(graph: onnx.GraphProto, scope: Scope) -> list[onnx.NodeProto]:
    node = helper.make_node
    shape = node("Shape", ["inputs_embeds"], ["gate.shape"], start=0, end=2)
    if scope == "all":
        return [shape, node("ConstantOfShape", ["gate.shape"], [GATE], value=_fill(1.0))]
    rows, one = ([1, 0], [0, 1])
    for name, value in (("gate.rows_only", rows), ("gate.one", one)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [2], value))
    return [
        shape,
        node("Sub", ["gate.shape", "gate.one"], ["gate.before_shape"]),
        node("Mul", ["gate.shape", "gate.rows_only"], ["gate.rows"]),
        node("Add", ["gate.rows", "gate.one"], ["gate.last_shape"]),
        node("ConstantOfShape", ["gate.before_shape"], ["gate.before"], value=_fill(0.0)),
        node("ConstantOfShape", ["gate.last_shape"], ["gate.last"], value=_fill(1.0)),
        node("Concat", ["gate.before", "gate.last"], [GATE], axis=1),
    ]


def _fill(value: float) -> onnx.TensorProto:
    return helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
