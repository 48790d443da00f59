"""Weight files (``weight.bin``): a header, then per tensor a metadata record and its bytes, 64-byte aligned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.records import Array

from .dtypes import BY_NAME

SENTINEL = 0xDEADBEEF
METADATA = np.dtype(
    [
        ("sentinel", "<u4"),
        ("dtype", "<u4"),
        ("size", "<u8"),
        ("offset", "<u8"),
        ("padding_bits", "<u8"),
        ("reserved", "<u8", 4),
    ]
)
"""A tensor's record (MILBlob ``blob_metadata``): ``size`` bytes at ``offset``, the last ``padding_bits`` unused."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One tensor of a weight file: ``data`` is a view of the mapped file."""

    data: NDArray[np.uint8]
    dtype: str

    def read(self, count: int) -> Array:
        """The first ``count`` elements as they are held while running, 1-D."""
        return BY_NAME[self.dtype].decode(self.data)[:count]


class BlobFile:
    """A memory-mapped weight file.

    Raises:
        UserError: the file is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} is missing, so the package is incomplete: copy or export it again")
        self.path = path
        self._bytes: NDArray[np.uint8] = (
            np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        )

    def blob(self, offset: int, dtype: str, count: int) -> Blob:
        """The tensor whose metadata lies at ``offset``, which the program declares as ``count`` elements of ``dtype``.

        Raises:
            UserError: no metadata is there, its type is another one, or the file ends too early.
        """
        record = self._bytes[offset : offset + METADATA.itemsize]
        if record.size < METADATA.itemsize:
            raise self._broken(f"ends before the metadata at byte {offset}")
        metadata = record.view(METADATA)[0]
        if metadata["sentinel"] != SENTINEL:
            raise self._broken(f"holds no tensor at byte {offset}")
        declared = BY_NAME[dtype]
        if metadata["dtype"] != declared.blob:
            raise self._broken(f"holds type {metadata['dtype']} at byte {offset} where {dtype} is declared")
        start, size = int(metadata["offset"]), declared.bytes_for(count)
        if size > metadata["size"]:
            raise self._broken(f"holds {metadata['size']} bytes at byte {offset} where {size} are declared")
        data = self._bytes[start : start + size]
        if data.size < size:
            raise self._broken(f"is truncated: {size} bytes at byte {start} of {self._bytes.size}")
        return Blob(data, dtype)

    def _broken(self, fault: str) -> UserError:
        return UserError(f"{self.path} {fault}, so the package is damaged: copy or export it again")
