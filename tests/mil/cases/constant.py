"""Compressed constants and quantization; states."""

from __future__ import annotations

import numpy as np

from .table import RANDOM, X, Y, case, floats, normal, uniform

CODES = RANDOM.integers(-8, 8, (4, 6)).astype(np.int8)
case(
    "constexpr_cast",
    lambda source_val, output_dtype: source_val.float(),
    source_val=normal(3).astype(np.float16),
    output_dtype="fp32",
)
for name in ("constexpr_affine_dequantize", "dequantize"):
    data = "quantized_data" if name.startswith("constexpr") else "input"
    for axis in (1, -2):
        size = CODES.shape[axis]
        scale, zero = uniform(0.1, 1, size), RANDOM.integers(-8, 8, size).astype(np.int8)
        along = (slice(None), None) if axis == -2 else (None, slice(None))
        case(
            name,
            (scale[along] * (CODES.astype(np.float32) - zero[along])).astype(np.float32),
            scale=scale,
            zero_point=zero,
            axis=axis,
            **{data: CODES},
        )
    case(
        name,
        CODES.astype(np.float32) * np.float32(0.25) - np.float32(0.75),
        scale=np.float32(0.25),
        zero_point=np.int8(3),
        axis=0,
        **{data: CODES},
    )
case("dequantize", CODES.astype(np.float32) * np.float32(0.25), input=CODES, scale=np.float32(0.25))
case(
    "dequantize", CODES.astype(np.float32) * floats([1], [2], [3], [4]), input=CODES, scale=floats(1, 2, 3, 4)
)
REALS = uniform(-50, 50, 4, 6)
STEPS = uniform(0.1, 1, 6)
case(
    "quantize",
    np.clip(np.rint(REALS / STEPS) + np.arange(6), 0, 255).astype(np.uint8),
    input=REALS,
    scale=STEPS,
    zero_point=np.arange(6, dtype=np.uint8),
    output_dtype="uint8",
    axis=1,
)
case(
    "quantize",
    np.clip(np.rint(REALS / floats([1], [0.5], [0.25], [2])), -128, 127).astype(np.int8),
    input=REALS,
    scale=floats(1, 0.5, 0.25, 2),
    output_dtype="int8",
)
case(
    "quantize",
    np.clip(np.rint(REALS / np.float32(0.25)), -128, 127).astype(np.int8),
    input=REALS,
    scale=np.float32(0.25),
    output_dtype="int8",
)
SCALES, OFFSETS = uniform(0.1, 1, 2, 3), RANDOM.integers(-8, 8, (2, 3)).astype(np.int8)
SPREAD_OUT = {
    name: np.kron(values, np.ones((2, 2), values.dtype)) for name, values in (("s", SCALES), ("o", OFFSETS))
}
SHIFTED = (SPREAD_OUT["s"] * (CODES.astype(np.float32) - SPREAD_OUT["o"])).astype(np.float32)
case("constexpr_blockwise_shift_scale", SHIFTED, data=CODES, scale=SCALES, offset=OFFSETS)
case("constexpr_blockwise_shift_scale", SPREAD_OUT["s"] * CODES, data=CODES, scale=SCALES)
INDICES = RANDOM.integers(0, 4, (4, 6)).astype(np.uint8)
TABLES = normal(2, 3, 4, 1)
LOOKED_UP = np.array([[TABLES[i // 2, j // 2, INDICES[i, j], 0] for j in range(6)] for i in range(4)])
case("constexpr_lut_to_dense", LOOKED_UP, indices=INDICES, lut=TABLES)
VECTORS = normal(2, 1, 4, 3)
ROWS = np.array([[VECTORS[i // 3 // 2, 0, INDICES[i // 3, j], i % 3] for j in range(6)] for i in range(12)])
COLUMNS = np.array([[VECTORS[i // 2, 0, INDICES[i, j // 3], j % 3] for j in range(18)] for i in range(4)])
case("constexpr_lut_to_dense", ROWS, indices=INDICES, lut=VECTORS, vector_axis=-2)
case("constexpr_lut_to_dense", COLUMNS, indices=INDICES, lut=VECTORS, vector_axis=1)
case(
    "constexpr_lut_to_dense",
    np.array([[10, 13, 11, 12, 11]], np.float32),
    indices=np.array([0b10011100, 0b01], np.uint8),
    lut=floats(10, 11, 12, 13),
    shape=(1, 5),
)
BITS = RANDOM.random((4, 6)) < 0.4
case(
    "constexpr_sparse_to_dense",
    np.where(BITS, CODES, 0).astype(np.int8),
    nonzero_data=CODES[BITS],
    mask=BITS.astype(np.uint8),
)
case(
    "constexpr_sparse_to_dense",
    floats([0, 0, 7], [8, 0, 9]),
    nonzero_data=floats(7, 8, 9),
    mask=np.array([0b101100], np.uint8),
    shape=(2, 3),
)
case(
    "constexpr_lut_to_sparse",
    (BITS.astype(np.uint8), LOOKED_UP[BITS]),
    indices_mask=BITS.astype(np.uint8),
    indices_nonzero_data=INDICES[BITS],
    lut=TABLES,
)
case(
    "constexpr_lut_to_sparse",
    (np.repeat(BITS, 3, 1).astype(np.uint8), COLUMNS[np.repeat(BITS, 3, 1)]),
    indices_mask=BITS.astype(np.uint8),
    indices_nonzero_data=INDICES[BITS],
    lut=VECTORS,
    vector_axis=1,
)
case(
    "constexpr_sparse_blockwise_shift_scale",
    (BITS.astype(np.uint8), SHIFTED[BITS]),
    data_mask=BITS.astype(np.uint8),
    nonzero_data=CODES[BITS],
    scale=SCALES,
    offset=OFFSETS,
)
case(
    "constexpr_sparse_blockwise_shift_scale",
    (BITS.astype(np.uint8), (SPREAD_OUT["s"] * CODES)[BITS]),
    data_mask=BITS.astype(np.uint8),
    nonzero_data=CODES[BITS],
    scale=SCALES,
)

case("read_state", X, input=X)
case("write_state", Y, input=X, data=Y)
