"""Coefficients (``docs/scale.md``): the record, and its file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.records import Float32, Json
from scale_export.core.words import MlpSite, Scope

from .formats import MAX_BYTES, READERS, WRITERS, read_capped, write_whole
from .rules import FORMAT, VERSION, BaseIdentity, Bound, Fields, checked_fields

__all__ = ["BaseIdentity", "Bound", "Coefficients", "load_coefficients", "save_coefficients"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """The trained scalars of one ScAle adapter (``docs/scale.md``).

    Attributes:
        layer_indices: the decoder layers that are scaled, strictly increasing.
        head_scale: one float32 vector ``[H]`` per listed layer, the effective s of each query head.
        mlp_scale: float32 ``[nL]``, the effective s of each listed layer's MLP output.
        training: what the trainer recorded; plain JSON values.
    """

    scope: Scope
    layer_indices: tuple[int, ...]
    head_scale: tuple[Float32, ...]
    mlp_scale: Float32
    mlp_site: MlpSite
    bound: Bound
    num_heads: int
    head_dim: int
    base: BaseIdentity
    training: Mapping[str, Json] = field(default_factory=dict)

    def dense(self, num_layers: int, num_heads: int) -> tuple[Float32, Float32]:
        """The scalars of every layer, ones where a layer is not listed: ``[L, H]`` and ``[L]`` float32."""
        attn = np.ones((num_layers, num_heads), np.float32)
        mlp = np.ones(num_layers, np.float32)
        for row, layer in enumerate(self.layer_indices):
            attn[layer] = self.head_scale[row]
            mlp[layer] = self.mlp_scale[row]
        return attn, mlp

    @property
    def count(self) -> int:
        """How many scalars there are."""
        return sum(v.size for v in self.head_scale) + self.mlp_scale.size

    def save(self, path: Path | str) -> None:
        """Write these to a ``.safetensors`` or ``.pt`` file; see ``save_coefficients``."""
        save_coefficients(self, path)


def coefficient_fields(coefficients: Coefficients) -> Fields:
    """The flat fields of a file; ``head_scale`` as one array where every layer has ``num_heads``."""
    rows, base = coefficients.head_scale, coefficients.base
    uniform = len(rows) > 0 and all(row.shape == (coefficients.num_heads,) for row in rows)
    return {
        "format": FORMAT,
        "version": VERSION,
        "scope": coefficients.scope,
        "layer_indices": list(coefficients.layer_indices),
        "head_scale": np.stack(rows) if uniform else list(rows),
        "mlp_scale": coefficients.mlp_scale,
        "mlp_site": coefficients.mlp_site,
        "bound": asdict(coefficients.bound),
        "num_heads": coefficients.num_heads,
        "head_dim": coefficients.head_dim,
        "base_model": base.base_model,
        "base_revision": base.base_revision,
        "model_type": base.model_type,
        "config_sha256": base.config_sha256,
        "tensor_sha256": dict(sorted(base.tensor_sha256.items())),
        "prompt_template_sha256": base.prompt_template_sha256,
        "transformers_version": base.transformers_version,
        "training": dict(coefficients.training),
    }


def validated(values: object, source: str) -> Coefficients:
    """Fields as a record; ``source`` begins every message.

    Raises:
        UserError: a field breaks a rule of the format.
    """
    return Coefficients(**checked_fields(values, source))


def load_coefficients(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Coefficients:
    """Read a coefficient file, ``.safetensors`` (without torch) or ``.pt`` (with torch 2.10 or newer).

    Raises:
        UserError: the file is missing, larger than ``max_bytes``, damaged, unsafe, or breaks a rule of the format.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path} is not named like a coefficient file: give a .safetensors or .pt file")
    return validated(READERS[path.suffix](path, read_capped(path, max_bytes)), str(path))


def check_suffix(path: Path) -> None:
    """Refuse a name that no coefficient file has.

    Raises:
        UserError: another suffix than ``.safetensors`` or ``.pt``.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"cannot write coefficients to {path}: name it .safetensors or .pt")


def save_coefficients(coefficients: Coefficients, path: Path | str) -> None:
    """Write a coefficient file, ``.safetensors`` or ``.pt``, in one step: whole or not at all.

    Equal coefficients give equal bytes. A ``base_model`` that is an absolute path is written relative to the
    file; a relative one is written as it is.

    Raises:
        UserError: another suffix, coefficients that break a rule of the format, or a place that can't be written.
    """
    path = Path(path)
    check_suffix(path)
    fields = coefficient_fields(coefficients)
    if Path(fields["base_model"]).is_absolute():
        relative = os.path.relpath(fields["base_model"], path.parent.resolve())
        fields["base_model"] = Path(relative).as_posix()
    checked = validated(fields, f"coefficients for {path}")
    write_whole(path, WRITERS[path.suffix](coefficient_fields(checked)))
