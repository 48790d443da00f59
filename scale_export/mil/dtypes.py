"""Types of the Core ML model intermediate language (MIL): how they are stored, named and held while running."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scale_export.core.records import Array

Arithmetic = Literal["float32", "float16"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: as NumPy would call it (``float16``, ``int4``, ``bool``, ``str``).
        mil: as parameters of operations call it (``fp16``).
        bits: bits per element in a file.
        blob: its number in the metadata of a weight file; None where it cannot be stored there.
    """

    name: str
    mil: str
    bits: int
    blob: int | None = None

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The type of stored elements; packed ones are unpacked to bytes first."""
        return np.dtype(np.uint8 if self.bits < 8 else self.name)

    @property
    def held(self) -> np.dtype[np.generic]:
        """The type of a value while running: floats in float32, packed integers one per byte."""
        if self.name.startswith(("float", "bfloat")):
            return np.dtype(np.float32)
        if 0 < self.bits < 8:
            return np.dtype(np.int8 if self.name.startswith("int") else np.uint8)
        return np.dtype(self.name)

    def bytes_for(self, count: int) -> int:
        """Bytes that ``count`` elements take in a file."""
        return -(-count * self.bits // 8)

    def decode(self, data: NDArray[np.uint8]) -> Array:
        """Stored bytes → values in ``held``, 1-D, the unused bits of the last bytes among them.

        Bit fields lie low bits first, and floats widen exactly.
        """
        if self.bits >= 8:
            return data.view(self.stored).astype(self.held, copy=False)
        span = math.lcm(8, self.bits)
        groups = np.pad(data, (0, -data.size % (span // 8))).reshape(-1, span // 8)
        words = sum(byte.astype(np.uint32) << 8 * at for at, byte in enumerate(groups.T))
        fields = np.empty((len(groups), span // self.bits), np.uint8)
        for at in range(span // self.bits):
            fields[:, at] = words >> at * self.bits & (1 << self.bits) - 1
        codes = fields.ravel()
        if self.held != np.int8:
            return codes
        sign = np.uint8(1 << (self.bits - 1))
        return (codes ^ sign).view(np.int8) - sign.view(np.int8)


DTYPES: dict[int, DType] = {
    1: DType("bool", "bool", 8, 3),
    2: DType("str", "string", 0),
    10: DType("float16", "fp16", 16, 1),
    11: DType("float32", "fp32", 32, 2),
    12: DType("float64", "fp64", 64),
    21: DType("int8", "int8", 8, 4),
    22: DType("int16", "int16", 16, 6),
    23: DType("int32", "int32", 32, 14),
    24: DType("int64", "int64", 64),
    25: DType("int4", "int4", 4, 8),
    31: DType("uint8", "uint8", 8, 3),
    32: DType("uint16", "uint16", 16, 7),
    33: DType("uint32", "uint32", 32, 15),
    34: DType("uint64", "uint64", 64),
    35: DType("uint4", "uint4", 4, 11),
    36: DType("uint2", "uint2", 2, 10),
    37: DType("uint1", "uint1", 1, 9),
    38: DType("uint6", "uint6", 6, 13),
    39: DType("uint3", "uint3", 3, 12),
}
"""MIL's number of a type → the type (``DataType`` of ``MIL.proto``; blob numbers from MILBlob's ``BlobDataType``)."""

BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
BY_MIL = {dtype.mil: dtype for dtype in DTYPES.values()}


MAX_ELEMENTS = 1 << 30
"""Of one value: 4 GiB of float32. No phone holds a larger one."""
MAX_RANK = 16


@dataclass(frozen=True, slots=True)
class TensorType:
    """What a program declares of a value: ``dtype`` by name, and ``shape``, where a flexible dimension is None."""

    dtype: str
    shape: tuple[int | None, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` is of this type."""
        return len(shape) == len(self.shape) and all(
            declared in (None, size) for declared, size in zip(self.shape, shape, strict=True)
        )

    @property
    def elements(self) -> int | None:
        """The product of the sizes; None where one is flexible."""
        sizes = [size for size in self.shape if size is not None]
        return math.prod(sizes) if len(sizes) == len(self.shape) else None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


def holder(dtype: str, arithmetic: Arithmetic) -> Callable[[ArrayLike], Array]:
    """A function that turns a computed value into the array that is held for the declared type."""
    if dtype == "float16" and arithmetic == "float16":
        return lambda value: np.asarray(value, np.float16).astype(np.float32)
    held = BY_NAME[dtype].held
    return lambda value: np.asarray(value, held)
