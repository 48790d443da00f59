"""Coefficient files written out by hand, as other tools would write them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from scale_export.coefficients.file import Coefficients

SUFFIXES = (".pt", ".safetensors")
HASH = "0123456789abcdef" * 4


def record(**changes: Any) -> dict[str, Any]:
    """The fields of a valid file, written out as ``docs/scale.md`` lists them; ``...`` leaves a field out."""
    rng = np.random.default_rng(3)
    fields: dict[str, Any] = {
        "format": "scale-coefficients",
        "version": 1,
        "scope": "last",
        "layer_indices": [0, 2, 10],
        "head_scale": rng.uniform(0, 2, (3, 4)).astype(np.float32),
        "mlp_scale": rng.uniform(0, 2, 3).astype(np.float32),
        "mlp_site": "output",
        "bound": {"kind": "tanh", "r": 1.0},
        "num_heads": 4,
        "head_dim": 32,
        "base_model": "model",
        "base_revision": None,
        "config_sha256": HASH,
        "tensor_sha256": {f"model.language_model.layers.{i}.mlp.down_proj.weight": HASH for i in (0, 2, 10)},
        "model_type": "llava",
        "prompt_template_sha256": HASH,
        "transformers_version": "5.23.0",
        "training": {"steps": 200, "lr": 0.08, "seeds": [1, 2], "note": "añb", "stopped": None, "ok": True},
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def write(fields: dict[Any, Any], path: Path) -> Path:
    """The fields as another tool would store them, valid or not."""
    if path.suffix == ".pt":
        as_torch = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in fields.items()}
        torch.save(as_torch, path)
    else:
        arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in fields.items() if name not in arrays}
        save_file(arrays, path, {"scale_coefficients": json.dumps(rest)})
    return path


def same(a: Coefficients, b: Coefficients) -> bool:
    """Equal in every field, bit for bit."""
    rows = [*zip(a.head_scale, b.head_scale, strict=True), (a.mlp_scale, b.mlp_scale)]
    scalars = all(x.dtype == y.dtype == np.float32 and x.tobytes() == y.tobytes() for x, y in rows)
    rest = [json.dumps(asdict(replace(c, head_scale=(), mlp_scale=())), sort_keys=True) for c in (a, b)]
    return scalars and rest[0] == rest[1]


def as_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {key: as_torch(item) for key, item in value.items()}
    return [as_torch(item) for item in value] if isinstance(value, list) else value
