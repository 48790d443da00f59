"""Tracing modules into ONNX models whose weights are attached afterwards."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from scale_export.backends.collector import uncollected
from scale_export.compat.onnx import spared, unheard
from scale_export.core.records import Array

OPSET = 22

KEPT = 64
"""How many graphs one owner's traces keep, the oldest of which goes first."""

_TRACES: weakref.WeakKeyDictionary[object, dict[Hashable, ir.Model]] = weakref.WeakKeyDictionary()


def traced_once(owner: object, key: Hashable, build: Callable[[], ir.Model]) -> ir.Model:
    """A graph of its own, as ``build()`` gives it, built once while ``owner`` lives: tracing takes most of an export.

    Args:
        owner: the module whose weights the graph holds, or the class of one whose weights are inputs.
        key: all else that the graph depends on.
    """
    traces = _TRACES.setdefault(owner, {})
    if key not in traces:
        traces[key] = build()
        if len(traces) > KEPT:
            del traces[next(iter(traces))]
    return traces[key].clone()


@contextmanager
def traced_anew() -> Iterator[None]:
    """Nothing that was traced before is used inside, and nothing that is traced inside is kept."""
    kept = dict(_TRACES)
    _TRACES.clear()
    try:
        yield
    finally:
        _TRACES.clear()
        _TRACES.update(kept)


def trace(
    module: nn.Module,
    args: tuple[object, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[object, ...],
) -> ir.Model:
    """``torch.onnx.export`` by ``torch.export``, quietly; the model in memory."""
    with unheard(), uncollected(), spared():
        program = torch.onnx.export(
            module,
            args,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model


def attach_weights(model: ir.Model, tensors: dict[str, Tensor], value: Callable[[str], Array]) -> None:
    """Turn the weights' graph inputs into initializers whose values are worked out when they are written.

    Args:
        tensors: name → placeholder, giving each weight's shape and dtype.
        value: name → its values, in any dtype that casts to the placeholder's.
    """
    inputs = {v.name: v for v in model.graph.inputs}
    for name, tensor in tensors.items():
        graph_input = inputs[name]
        dtype = ir.DataType.from_numpy(torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        graph_input.const_value = ir.LazyTensor(
            functools.partial(_tensor, name, dtype, value),
            dtype=dtype,
            shape=ir.Shape(tensor.shape),
            name=name,
        )
        model.graph.inputs.remove(graph_input)
        model.graph.register_initializer(graph_input)


def _tensor(name: str, dtype: ir.DataType, value: Callable[[str], Array]) -> ir.TensorProtocol:
    return ir.tensor(value(name).astype(dtype.numpy()), name=name)


def forget_inner_shapes(model: ir.Model) -> None:
    """Drop the tracer's dimension names from between inputs and outputs."""
    kept = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        for output in node.outputs:
            if output not in kept:
                output.shape = None
