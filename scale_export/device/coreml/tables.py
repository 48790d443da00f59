"""What the host looks up: the embedding table and the tower's constants, in one memory-mapped file.

``tables.safetensors`` holds ``embedding`` ``[V, D]`` in float16 (float32 in measurements), or where weights are
quantized ``embedding.codes`` int8 ``[V, D]`` with ``embedding.scales`` float16 ``[V, D / block_size]``: 8 bits even
beside int4 matrices, since a token reads one row only. Further tensors are constants, float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from scale_export.core.records import Array, Float32

EMBEDDING = "embedding"
CODES, SCALES = f"{EMBEDDING}.codes", f"{EMBEDDING}.scales"


def write_tables(embedding: Mapping[str, Array], constants: Mapping[str, Float32], path: Path) -> None:
    """Write the file; ``embedding`` is one of the two layouts above, by tensor name."""
    tensors = {name: np.ascontiguousarray(value) for name, value in {**embedding, **constants}.items()}
    path.write_bytes(save(tensors))


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...

    def __getitem__(self, rows: slice) -> Array: ...


class _TensorFile(Protocol):
    """What safetensors opens."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Array: ...

    def get_slice(self, name: str) -> _Slice: ...


class HostTables:
    """The opened file. Rows are read as they are asked for."""

    def __init__(self, path: Path) -> None:
        opened: Callable[..., _TensorFile] = safetensors.safe_open
        self._file = opened(path, framework="numpy")
        names = set(self._file.keys())
        self.constants: dict[str, Float32] = {
            name: self._file.get_tensor(name) for name in sorted(names - {EMBEDDING, CODES, SCALES})
        }
        self._quantized = CODES in names
        self._rows = self._file.get_slice(CODES if self._quantized else EMBEDDING)
        self.hidden_size: int = self._rows.get_shape()[1]

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        """``ids [B, T]`` → their rows ``[B, T, D]``, float32."""
        unique, where = np.unique(ids, return_inverse=True)
        rows = np.concatenate([self._rows[int(i) : int(i) + 1] for i in unique]).astype(np.float32)
        if self._quantized:
            scales = self._file.get_slice(SCALES)
            factors = np.concatenate([scales[int(i) : int(i) + 1] for i in unique]).astype(np.float32)
            rows *= np.repeat(factors, rows.shape[1] // factors.shape[1], axis=1)
        table: Float32 = rows[where].reshape(*ids.shape, -1)
        return table
