"""Weights in 16 bits on disk where that loses nothing."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

NARROW: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
LEAST_ELEMENTS: Final = 1024
"""Of a tensor that is worth a node of its own."""


def store_narrow(model: ir.Model) -> None:
    """Store float32 initializers in the 16 bits that hold them exactly, as they hold those of a 16-bit checkpoint.

    A Cast, which runtimes work out as they load a graph, gives back the very same float32 values.
    """
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST_ELEMENTS:
            continue
        dtype = next((dtype for dtype in NARROW if _holds(dtype, tensor.numpy())), None)
        if dtype is None:
            continue
        narrow = ir.LazyTensor(  # worked out as it is written, one tensor at a time
            functools.partial(_narrowed, tensor, dtype),
            dtype=dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name,
        )
        stored = ir.Value(name=value.name, const_value=narrow)
        widened = ir.node(
            "Cast", [stored], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}.widened"
        )
        widened.outputs[0].name = f"{value.name}.float32"
        ir.convenience.replace_all_uses_with(value, widened.outputs[0])
        model.graph.insert_before(model.graph[0], widened)
        model.graph.initializers[str(value.name)] = stored


def _holds(dtype: ir.DataType, wide: NDArray[np.float32]) -> bool:
    """Whether these numbers come back from that dtype bit by bit."""
    with np.errstate(over="ignore"):  # beyond float16's reach
        back = wide.astype(dtype.numpy()).astype(np.float32)
    return np.array_equal(back.view(np.uint32), wide.view(np.uint32))


def _narrowed(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(dtype.numpy()), name=tensor.name)
