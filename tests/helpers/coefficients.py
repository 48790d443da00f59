"""Random scalars for a random model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scale_export.coefficients.file import Coefficients
from scale_export.core.words import Scope
from scale_export.model.base import BaseModel
from scale_export.model.identity import make_coefficients


def random_coefficients(
    base: BaseModel, scope: Scope = "last", layers: tuple[int, ...] | None = None
) -> Coefficients:
    """Scalars over (0.1, 1.9), no two alike, on the given layers or on all."""
    spec = base.spec
    chosen = tuple(range(spec.num_layers)) if layers is None else layers
    rng = np.random.default_rng(7)
    return make_coefficients(
        base.model,
        base.directory,
        scope=scope,
        head_scale=rng.uniform(0.1, 1.9, (len(chosen), spec.num_heads)).astype(np.float32),
        mlp_scale=rng.uniform(0.1, 1.9, len(chosen)).astype(np.float32),
        layer_indices=chosen,
    )


def saved(coefficients: Coefficients, directory: Path) -> Path:
    """The coefficients as a file."""
    path = directory / "spatial.safetensors"
    coefficients.save(path)
    return path
