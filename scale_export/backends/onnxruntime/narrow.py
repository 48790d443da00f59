"""Weights in 16 bits on disk where that loses nothing."""

from __future__ import annotations

from typing import Any, Final

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
        narrow = _narrowed(tensor.numpy())
        if narrow is None:
            continue
        stored = ir.Value(name=value.name, const_value=ir.tensor(narrow, name=value.name))
        widened = ir.node(
            "Cast", [stored], attributes={"to": ir.DataType.FLOAT}, name=f"{value.name}.widened"
        )
        widened.outputs[0].name = f"{value.name}.float32"
        ir.convenience.replace_all_uses_with(value, widened.outputs[0])
        model.graph.insert_before(model.graph[0], widened)
        model.graph.initializers[str(value.name)] = stored


def _narrowed(wide: NDArray[np.float32]) -> NDArray[Any] | None:
    """The same numbers in 16 bits; None where some of them need more."""
    for dtype in NARROW:
        with np.errstate(over="ignore"):  # beyond float16's reach
            narrow: NDArray[Any] = wide.astype(dtype.numpy())
        if np.array_equal(narrow.astype(np.float32).view(np.uint32), wide.view(np.uint32)):
            return narrow
    return None
