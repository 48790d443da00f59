"""What is changed in a graph as it is opened to be looked into; its file stays as it is."""

from __future__ import annotations

import copy
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scale_export.core.inside import file_inside

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Part = TypeVar("Part")


def altered_bytes(path: Path, *, strict: bool, tapped: bool, only: str | None) -> tuple[bytes, Path]:
    """The graph, without its external data, with what ``open_session`` changes in it; and where its data lies."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for attribute in (a for node in model.graph.node for a in node.attribute):
        if strict and attribute.name == "accuracy_level":
            attribute.i = 0
    if tapped:
        _expose_products(model.graph)
    if only is not None:
        _cut(model.graph, only)
    folder = _follow_links(model.graph, path)
    return bytes(model.SerializeToString()), folder


def _follow_links(graph: GraphProto, path: Path) -> Path:
    """Name data files as they are called behind links of the hub's cache, and return the folder where they lie.

    ONNX Runtime follows links to data for graphs that it opens by their path, and not for those that it is given.

    Raises:
        UserError: data outside the graph's folder.
    """
    folders = {path.parent}
    for entry in (e for tensor in graph.initializer for e in tensor.external_data if e.key == "location"):
        real = file_inside(path.parent, entry.value, path.name).resolve()
        entry.value, folders = real.name, {real.parent}
    return folders.pop()


def _cut(graph: GraphProto, output: str) -> None:
    """Leave the nodes that one output is made of, and what they take."""
    needed = {output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):  # in the order in which they run
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _keep(graph.node, kept[::-1])
    _keep(graph.output, [value for value in graph.output if value.name == output])
    _keep(graph.input, [value for value in graph.input if value.name in needed])
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])


def _keep(field: MutableSequence[Part], parts: Sequence[Part]) -> None:
    """Leave those of a field's parts."""
    copies = copy.deepcopy(parts)
    del field[:]
    field.extend(copies)


def tap_names(matrix: str) -> tuple[str, str]:
    """What a tapped graph calls what goes into and comes out of a matrix."""
    return f"tap.{matrix}.input", f"tap.{matrix}.output"


def _expose_products(graph: GraphProto) -> None:
    """Copy the input and the output of every matrix product (its bias added) to outputs of the graph."""
    from onnx import helper

    readers = {name: node for node in graph.node for name in node.input}
    rounding = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    makers = {node.output[0]: node for node in rounding}

    def source(value: str) -> str:
        """What a value was before it was rounded."""
        return source(makers[value].input[0]) if value in makers else value

    for node in list(graph.node):
        if node.op_type not in ("MatMul", "MatMulNBits"):
            continue
        given, matrix, found = (
            source(node.input[0]),
            source(node.input[1]).removesuffix(".codes"),
            node.output[0],
        )
        after = readers.get(found)
        if after is not None and after.op_type == "Add" and f"{matrix}.bias" in after.input:
            found = after.output[0]
        for value, name in zip((given, found), tap_names(matrix), strict=True):
            graph.node.append(helper.make_node("Identity", [value], [name]))
            graph.output.append(helper.make_empty_tensor_value_info(name))
