"""Holding a folded checkpoint to its base, tensor by tensor; streamed, so that it works at any size.

What is expected is worked out here from the coefficients in float64, not by the code that folded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from scale_export.backends.checkpoint.storage import half_ulp, widen
from scale_export.backends.checkpoint.writer import pieces
from scale_export.core.compare import LargestError
from scale_export.core.errors import UserError
from scale_export.core.limits import STORAGE_HALF_ULPS
from scale_export.model.checkpoint import Checkpoint, StoredTensor
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import CheckpointWeights

from .numbers import number
from .rows import Row, holds, within

Exact = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Some rows of a stored tensor in float64 → what the scalars make of them (``docs/scale.md``)."""

EXPONENTS: Final[Mapping[str, tuple[str, int]]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}
"""Stored dtype → its bits as whole numbers, and those of the exponent, all set where a value is no finite number."""
MAX_NAMED = 8
"""How many changed tensors ``parity.json`` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorsLeg:
    """A checkpoint's touched tensors against their exact products, every other one against the base's.

    Attributes:
        error: the worst of a touched tensor, in half units of the last place of its stored dtype, against the widest
            limit; infinite where tensors are not where they were.
        cases: how many tensors the scalars touch.
        beyond: those of them beyond the limit of their own dtype.
        layout_identical: whether every file's header is the base's.
        untouched: how many tensors no scalar touches.
        changed: those of them whose dtype, shape or bytes are not the base's.
        not_finite: those of the base's that hold a value that is no finite number.
    """

    name: ClassVar = "tensors"
    meaning: ClassVar = "exact products, and the base's bytes → the tensors as stored"

    error: LargestError
    cases: int
    beyond: tuple[str, ...]
    layout_identical: bool
    untouched: int
    changed: tuple[str, ...]
    not_finite: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        compared = self.cases + self.untouched > 0
        sound = self.layout_identical and not self.changed and not self.not_finite
        return compared and sound and not self.beyond

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        label = f"SHA-256 unchanged, {number(self.untouched)} tensors that no scalar touches"
        return (
            within(self.name, self.error),
            holds("headers identical to the base's", self.layout_identical),
            holds(label, not self.changed),
            holds("every value a finite number", not self.not_finite),
        )

    def figures(self) -> Mapping[str, float | None]:
        return {}

    def to_json(self) -> dict[str, object]:
        return {
            **self.error.to_json(),
            "cases": self.cases,
            "layout_identical": self.layout_identical,
            "untouched": self.untouched,
            "untouched_identical": not self.changed,
            "changed": list(self.changed[:MAX_NAMED]),
            "not_finite": list(self.not_finite[:MAX_NAMED]),
            "passed": self.passed,
        }


def tensors_leg(folded: FoldedDecoder, weights: CheckpointWeights, directory: Path) -> TensorsLeg:
    """Touched tensors against their exact products, every other one by SHA-256 against the base's."""
    base, touched = weights.checkpoint, exact_folds(folded, weights)
    others = [name for name in base.stored_names() if name not in touched]
    in_place = layout_identical(base, directory)
    errors = {
        name: tensor_error(base.stored(name), exact, directory) if in_place else float("inf")
        for name, exact in touched.items()
    }
    limits = {name: STORAGE_HALF_ULPS[base.stored(name).dtype] for name in touched}
    return TensorsLeg(
        error=LargestError(
            metric="max |stored − exact|, half units of the last place",
            value=max(errors.values(), default=0.0),
            limit=max(limits.values(), default=1.0),
        ),
        cases=len(touched),
        beyond=tuple(name for name, error in errors.items() if not error <= limits[name]),
        layout_identical=in_place,
        untouched=len(others),
        changed=tuple(changed_tensors(base, directory, others)),
        not_finite=tuple(name for name in base.stored_names() if not is_finite(base.stored_as(name))),
    )


def exact_folds(folded: FoldedDecoder, weights: CheckpointWeights) -> dict[str, Exact]:
    """Stored name → what the scalars make of it, for every tensor that they change."""
    coefficients, spec, checkpoint = folded.coefficients, weights.spec, weights.checkpoint
    found: dict[str, Exact] = {}

    def touch(name: str, part: str, exact: Exact) -> None:
        found[checkpoint.resolve(f"{weights.module_name(name)}.{part}")] = exact

    for row, layer in enumerate(coefficients.layer_indices):
        heads = np.asarray(coefficients.head_scale[row], np.float64)
        mlp = np.float64(coefficients.mlp_scale[row])
        if np.any(heads != 1):
            touch(f"layers.{layer}.o_proj", "weight", _by_head(heads, spec.head_dim))
        if mlp == 1:
            continue
        if coefficients.mlp_site == "output":
            touch(f"layers.{layer}.down_proj", "weight", functools.partial(np.multiply, mlp))
            if spec.linears()[f"layers.{layer}.down_proj"][2]:
                touch(f"layers.{layer}.down_proj", "bias", functools.partial(np.multiply, mlp))
            continue
        touch(f"layers.{layer}.mlp_output_norm", "weight", _norm(mlp, spec.norm_offset))
    return found


def _norm(scalar: np.float64, offset: float) -> Exact:
    """Of a norm that multiplies by offset + w."""
    return lambda values: scalar * (values + offset) - offset


def _by_head(heads: NDArray[np.float64], head_dim: int) -> Exact:
    def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = values.reshape(-1, len(heads), head_dim) * heads[:, None]
        return product.reshape(values.shape)

    return scaled


def layout_identical(base: Checkpoint, directory: Path) -> bool:
    """Whether every weight file has the base's length and, byte for byte, its header."""
    files = [(file, directory / file.name) for file in base.weight_files()]
    return all(other.is_file() and _header(file) == _header(other) for file, other in files)


def _header(file: Path) -> tuple[int, bytes]:
    with file.open("rb") as opened:
        length = opened.read(8)
        return file.stat().st_size, length + opened.read(int.from_bytes(length, "little"))


def changed_tensors(base: Checkpoint, directory: Path, names: list[str]) -> list[str]:
    """Those of ``names`` whose dtype, shape or bytes are not the base's; all where there is no checkpoint."""
    try:
        found = Checkpoint(directory)
    except UserError:
        return names
    return [name for name in names if name not in found or found.sha256(name) != base.sha256(name)]


def is_finite(tensor: StoredTensor) -> bool:
    """Whether no value of a stored tensor is infinite or NaN, by its bits; True of dtypes that have neither."""
    if tensor.dtype not in EXPONENTS:
        return True
    bits, exponent = EXPONENTS[tensor.dtype]
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for raw in pieces(file, tensor):
            if np.any(np.frombuffer(raw, bits) & exponent == exponent):
                return False
    return True


def tensor_error(tensor: StoredTensor, exact: Exact, directory: Path) -> float:
    """The worst distance of the stored from the exact values, in half units of the last place."""
    worst = 0.0
    with tensor.file.open("rb") as before, (directory / tensor.file.name).open("rb") as after:
        before.seek(tensor.start)
        after.seek(tensor.start)
        for raw, stored in zip(pieces(before, tensor), pieces(after, tensor), strict=True):
            expected = exact(_rows(raw, tensor))
            error = np.abs(_rows(stored, tensor) - expected) / half_ulp(expected, tensor.dtype)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max(initial=0)))
    return worst


def _rows(raw: bytes, tensor: StoredTensor) -> NDArray[np.float64]:
    values = widen(raw, tensor.dtype).astype(np.float64)
    return values.reshape(-1, tensor.shape[-1]) if len(tensor.shape) > 1 else values
