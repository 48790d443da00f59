"""Block-wise quantized matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Float32

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMatrix:
    """A symmetric block-wise quantized matrix ``[out, in]``, in the layout of ONNX Runtime's MatMulNBits.

    weight[n, k] = (code[n, k] − 2^(bits−1)) · scales[n, k // block_size]

    Attributes:
        codes: uint8 ``[out, blocks, block_size · bits / 8]``, low bits first.
        scales: float32 ``[out, blocks]``; may be negative or zero.
        in_features: the true input width (the last block may be padded).
    """

    codes: NDArray[np.uint8]
    scales: Float32
    bits: Bits
    block_size: int
    in_features: int

    @property
    def codes_sha256(self) -> str:
        """SHA-256 of the codes as stored."""
        return hashlib.sha256(self.codes.tobytes()).hexdigest()

    def integers(self) -> NDArray[np.uint8]:
        """The codes one per element: uint8 ``[out, in]``."""
        return integers_of(self.codes, self.bits, self.in_features)

    @staticmethod
    def packed(integers: NDArray[np.uint8], bits: Bits) -> NDArray[np.uint8]:
        """What ``integers`` undoes, where blocks are whole: the bytes of ``codes`` as ``[out, in · bits / 8]``."""
        if bits != 4:
            return integers
        low, high = integers[:, 0::2], integers[:, 1::2]
        return np.asarray(low | high << 4, np.uint8)

    def dequantize(self) -> Float32:
        """The weights that a runtime computes with: float32 ``[out, in]``."""
        scales = np.repeat(self.scales, self.block_size, axis=1)[:, : self.in_features]
        centred = self.integers().astype(np.float32) - np.float32(2 ** (self.bits - 1))
        return centred * scales

    def with_block_factors(self, factors: Float32) -> BlockMatrix:
        """A new matrix whose scales are multiplied by ``factors [blocks]``; the codes stay."""
        return replace(self, scales=(self.scales * factors).astype(np.float32))


def hash_codes(codes: Iterable[tuple[str, NDArray[np.uint8]]]) -> dict[str, str]:
    """``BlockMatrix.codes_sha256`` of matrices by name, from their packed codes."""
    return {name: hashlib.sha256(packed.tobytes()).hexdigest() for name, packed in codes}


def integers_of(packed: NDArray[np.uint8], bits: Bits, in_features: int) -> NDArray[np.uint8]:
    """Packed codes ``[out, …]`` one per element: uint8 ``[out, in_features]``."""
    codes = packed if bits != 4 else np.stack((packed & 0x0F, packed >> 4), axis=-1)
    return codes.reshape(codes.shape[0], -1)[:, :in_features]
