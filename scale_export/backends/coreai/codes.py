"""Reading a decoder asset back: the integer codes of its matrices, as its program holds them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export.device.coreai.apple import load_apple

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a layer, in the order in which its program multiplies by them."""

_UNPACK = re.compile(r"coreai\.blockwise_shift_scale (%\d+), .*\(tensor<(\d+)x\d+xsi([48])>")
_CONSTANT = re.compile(r"(%\d+) = coreai\.constant dense_resource<(\w+)>")
_RESOURCE = re.compile(r'^ +(\w+): "0x(?:[0-9A-F]{8})([0-9A-F]*)"', re.MULTILINE)  # after the alignment


def decoder_codes(decoder: Path, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The codes of each named matrix (``layers.0.o_proj``) in the bytes of ``BlockMatrix.codes``.

    The program's text is the one public view of large constants; it names none, so that a matrix is told
    by its place in the order of multiplication.

    Raises:
        ValueError: a matrix of less than a kilobyte.
    """
    authoring = load_apple("coreai.authoring")
    text = str(authoring.AIModelAsset.load(decoder).program)
    resources = {match[1]: match[2] for match in _RESOURCE.finditer(text)}
    constants = {match[1]: match[2] for match in _CONSTANT.finditer(text)}
    unpacked = list(_UNPACK.finditer(text))
    for name in names:
        _, layer, part = name.split(".")
        value, rows, bits = unpacked[int(layer) * len(PARTS) + PARTS.index(part)].groups()
        if value not in constants:
            raise ValueError(f"{name} is too small: its codes lie inside the program's text")
        signed = np.frombuffer(bytes.fromhex(resources[constants[value]]), np.uint8)
        # The top bit of each code turns two's complement into an offset.
        codes: NDArray[np.uint8] = signed ^ np.uint8(0x88 if bits == "4" else 0x80)
        yield name, codes.reshape(int(rows), -1)
