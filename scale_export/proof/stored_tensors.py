"""Holding a folded checkpoint to its base, tensor by tensor; streamed, so that it works at any size.

What is expected is worked out here from the coefficients in float64, not by the code that folded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scale_export.backends.checkpoint.storage import half_ulp, widen
from scale_export.backends.checkpoint.writer import pieces
from scale_export.core.compare import Leg
from scale_export.core.errors import UserError
from scale_export.core.limits import STORAGE_HALF_ULPS
from scale_export.model.checkpoint import Checkpoint, StoredTensor
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import CheckpointWeights

Exact = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Some rows of a stored tensor in float64 → what the scalars make of them (``docs/scale.md``)."""


def tensors_leg(folded: FoldedDecoder, weights: CheckpointWeights, directory: Path) -> Leg:
    """Touched tensors against their exact products, every other one by SHA-256 against the base's.

    ``value`` is the worst error in half units of the last place of the stored dtype; an infinite one (a
    tensor that is not where it was) is written as null and fails.
    """
    base, touched = weights.checkpoint, exact_folds(folded, weights)
    others = [name for name in base.stored_names() if name not in touched]
    in_place = layout_identical(base, directory)
    errors = {
        name: tensor_error(base.stored(name), exact, directory) if in_place else float("inf")
        for name, exact in touched.items()
    }
    limits = {name: STORAGE_HALF_ULPS[base.stored(name).dtype] for name in touched}
    changed = changed_tensors(base, directory, others)
    worst = max(errors.values(), default=0.0)
    return {
        "metric": "max |stored − exact|, half units of the last place",
        "value": worst if np.isfinite(worst) else None,
        "limit": max(limits.values(), default=1.0),
        "cases": len(touched),
        "layout_identical": in_place,
        "untouched": len(others),
        "untouched_identical": not changed,
        "changed": changed[:8],
        "passed": in_place and not changed and all(errors[name] <= limits[name] for name in touched),
    }


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
