"""Numbers as safetensors files hold them, in NumPy: float32, float16 and bfloat16 to float32 and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scale_export.core.limits import STORAGE_BITS
from scale_export.core.records import Array, Float32

FOLDABLE = tuple(STORAGE_BITS)
"""The dtypes that scalars can be folded into, as safetensors spells them."""

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_EXPONENT_BITS = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}
_SMALLEST_EXPONENT = {"F32": -126, "F16": -14, "BF16": -126}


def widen(raw: bytes, dtype: str) -> Float32:
    """The values of little-endian ``raw`` as float32, exactly."""
    if dtype == "BF16":
        halves = np.frombuffer(raw, "<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


def narrow(values: Float32, dtype: str) -> bytes:
    """The values in ``dtype``, rounded to nearest, ties to even; what overflows becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        halves = rounded.astype("<u2")
        halves[np.isnan(values)] = 0x7FC0  # whose bits the addition may have carried away
        return halves.tobytes()
    with np.errstate(over="ignore"):
        return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def all_finite(raw: bytes, dtype: str) -> bool:
    """Whether ``raw`` holds neither infinities nor NaN."""
    bits = np.frombuffer(raw, "<u4" if dtype == "F32" else "<u2")
    special = bits.dtype.type(_EXPONENT_BITS[dtype])
    return not bool(((bits & special) == special).any())


def half_ulp(exact: Array, dtype: str) -> NDArray[np.float64]:
    """Half a unit of the last place of ``dtype`` at each float64 value: the most that one rounding moves it."""
    _, exponent = np.frexp(np.abs(exact))
    exponent = np.where(exact == 0, _SMALLEST_EXPONENT[dtype], exponent - 1)
    exponent = np.maximum(exponent, _SMALLEST_EXPONENT[dtype])
    halves: NDArray[np.float64] = np.ldexp(np.ones(exact.shape), exponent - STORAGE_BITS[dtype])
    return halves
