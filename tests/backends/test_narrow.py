"""Float32 weights stored in 16 bits: only where not a bit is lost, and computed with as before."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from scale_export.backends.onnxruntime.narrow import LEAST_ELEMENTS, store_narrow
from scale_export.backends.onnxruntime.save import save_model

SIDE = 64
FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def graph(matrix: np.ndarray) -> ir.Model:
    """y = x · w + b."""
    x = ir.Value(name="x", shape=ir.Shape((2, SIDE)), type=ir.TensorType(FLOAT))
    weights = [
        ir.Value(name=name, const_value=ir.tensor(values.astype(np.float32), name=name))
        for name, values in (("w", matrix), ("b", np.arange(SIDE)))
    ]
    product = ir.node("MatMul", [x, weights[0]])
    added = ir.node("Add", [product.outputs[0], weights[1]])
    (y,) = added.outputs
    y.name, y.shape, y.type = "y", ir.Shape((2, SIDE)), ir.TensorType(FLOAT)
    made = ir.Graph([x], [y], nodes=[product, added], initializers=weights, opset_imports={"": 22})
    return ir.Model(made, ir_version=10)


def matrix(dtype: type = np.float32) -> np.ndarray:
    """Random, in the values of that dtype; in float32."""
    values = np.random.default_rng(0).standard_normal((SIDE, SIDE))
    return values.astype(dtype).astype(np.float32)


def stored_as(values: np.ndarray) -> ir.DataType:
    model = graph(values)
    store_narrow(model)
    tensor, bias = (model.graph.initializers[name].const_value for name in ("w", "b"))
    assert tensor is not None
    assert bias is not None
    assert bias.dtype == FLOAT, f"fewer than {LEAST_ELEMENTS} elements"
    assert np.array_equal(tensor.numpy().astype(np.float32), values)
    return tensor.dtype


def run(model: ir.Model, path: Path) -> np.ndarray:
    save_model(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, SIDE)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (matrix(np.float16), FLOAT16),
        (matrix(ml_dtypes.bfloat16) * np.float32(2**-40), BFLOAT16),
        (matrix(), FLOAT),
    ],
    ids=["float16", "bfloat16", "float32"],
)
def test_a_graph_computes_the_same_from_fewer_bytes(
    values: np.ndarray, expected: ir.DataType, tmp_path: Path
):
    assert stored_as(values) == expected
    narrow = graph(values)
    store_narrow(narrow)
    results = [run(graph(values), tmp_path / "wide.onnx"), run(narrow, tmp_path / "narrow.onnx")]
    assert np.array_equal(*results)
    wide_bytes, narrow_bytes = (
        (tmp_path / f"{name}.onnx.data").stat().st_size for name in ("wide", "narrow")
    )
    assert narrow_bytes < 0.6 * wide_bytes or expected == FLOAT


@pytest.mark.parametrize("value", [1 + 2**-20, 65536.5, 2.0**-30 + 2.0**-50])
def test_one_value_that_needs_more_bits_keeps_its_tensor_wide(value: float):
    values = matrix(np.float16)
    values[3, 5] = value
    assert stored_as(values) == FLOAT


@pytest.mark.parametrize("value", [-0.0, np.inf, 65504.0, 2.0**-24])
def test_the_edges_of_float16_are_kept_bit_by_bit(value: float):
    values = matrix(np.float16)
    values[3, 5] = value
    assert stored_as(values) == FLOAT16
