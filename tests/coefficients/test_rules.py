"""Every rule of a coefficient file, broken one at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export.coefficients.file import load_coefficients, save_coefficients
from scale_export.coefficients.rules import REQUIRED
from scale_export.core.errors import UserError
from tests.helpers.coefficient_files import HASH, SUFFIXES, record, write

NAN, INF = np.float32("nan"), np.float32("inf")
SHA = r"is not a SHA-256"
REFUSALS: list[tuple[dict[str, Any], str]] = [
    *[({name: ...}, f"{name} is missing") for name in REQUIRED if name not in ("format", "version")],
    ({"version": ...}, "version is not 1"),
    ({"format": ...}, r"has no field 'format'.*import_state_dict"),
    ({"format": "lora"}, "format is not 'scale-coefficients'"),
    ({"version": 2}, "version is not 1"),
    ({"version": True}, "version is not 1"),
    ({"head_scales": 1}, r"'head_scales' is not a field.*did you mean 'head_scale'"),
    ({"scope": "lats"}, r"scope is 'lats' \(did you mean 'last'\?\).*one of last, all"),
    ({"scope": None}, "scope is None"),
    ({"scope": ["last"]}, "scope is a list"),
    ({"mlp_site": "pre_norm"}, r"mlp_site .*one of output, post_norm"),
    ({"layer_indices": []}, "layer_indices is not a non-empty list"),
    ({"layer_indices": 3}, "layer_indices is not a non-empty list"),
    ({"layer_indices": [0, 2, 2]}, "layer_indices is not strictly increasing"),
    ({"layer_indices": [2, 0, 10]}, "layer_indices is not strictly increasing"),
    ({"layer_indices": [-1, 0, 2]}, "layer_indices holds a value that is not a layer number"),
    ({"layer_indices": [0.0, 2, 10]}, "layer_indices holds a value that is not a layer number"),
    ({"layer_indices": [False, 2, 10]}, "layer_indices holds a value that is not a layer number"),
    ({"layer_indices": [0, 2, 10**30]}, "layer_indices holds a value that is not a layer number"),
    ({"layer_indices": np.array([[0, 2, 10]])}, "layer_indices is not a non-empty list"),
    ({"layer_indices": [0, 2]}, r"head_scale has shape \[3, 4\] .*\[2, 4\]"),
    ({"head_scale": np.ones((3, 5), np.float32)}, r"head_scale has shape \[3, 5\] .*\[3, 4\]"),
    ({"head_scale": np.ones(12, np.float32)}, r"head_scale has shape \[12\] .*\[3, 4\]"),
    ({"head_scale": np.ones((3, 4))}, "head_scale is .*float32"),
    ({"head_scale": np.ones((3, 4), np.int64)}, "head_scale is int64.*float32"),
    ({"head_scale": np.full((3, 4), NAN)}, "head_scale holds NaN"),
    ({"head_scale": [[1.0] * 4] * 3}, r"head_scale\[0\] is list.*float32"),
    ({"head_scale": [1.0] * 2}, "head_scale has 2 rows for 3 layers"),
    ({"head_scale": "ones"}, "head_scale is str.*float32"),
    ({"mlp_scale": np.ones(4, np.float32)}, r"mlp_scale has shape \[4\] .*\[3\]"),
    ({"mlp_scale": np.array([1, INF, 1], np.float32)}, "mlp_scale holds NaN or infinity"),
    ({"mlp_scale": [1.0, 1.0, 1.0]}, "mlp_scale is list"),
    ({"num_heads": 8}, r"head_scale has shape \[3, 4\] .*\[3, 8\]"),
    ({"num_heads": 4.0}, "num_heads is not an integer"),
    ({"num_heads": 0}, "num_heads is not an integer from 1"),
    ({"head_dim": True}, "head_dim is not an integer"),
    ({"head_dim": 2**40}, "head_dim is not an integer"),
    ({"bound": {"kind": "tanh"}}, "bound is not a record of exactly"),
    ({"bound": {"kind": "tanh", "r": 1.0, "x": 1}}, "bound is not a record of exactly"),
    ({"bound": "tanh"}, "bound is not a record"),
    ({"bound": {"kind": "tanh", "r": 0}}, "bound must be kind"),
    ({"bound": {"kind": "tanh", "r": -1.0}}, "bound must be kind"),
    ({"bound": {"kind": "tanh", "r": float("nan")}}, "bound must be kind"),
    ({"bound": {"kind": "tanh", "r": 10**400}}, "bound must be kind"),
    ({"bound": {"kind": "none", "r": 1.0}}, "bound must be kind"),
    ({"bound": {"kind": "sigmoid", "r": 1.0}}, "bound must be kind"),
    ({"base_model": ""}, "base_model is not a printable"),
    ({"base_model": "a\0b"}, "base_model is not a printable"),
    ({"base_model": None}, "base_model is not a printable"),
    ({"base_revision": 3}, "base_revision is not a printable"),
    ({"model_type": "\ud800"}, "model_type is not a printable"),
    ({"transformers_version": 5}, "transformers_version is not a printable"),
    ({"config_sha256": HASH.upper()}, f"config_sha256 {SHA}"),
    ({"config_sha256": HASH[:-1]}, f"config_sha256 {SHA}"),
    ({"config_sha256": HASH + "\n"}, f"config_sha256 {SHA}"),
    ({"prompt_template_sha256": "no"}, f"prompt_template_sha256 {SHA}"),
    ({"tensor_sha256": {}}, "tensor_sha256 has no hash of a weight of layer 0"),
    ({"tensor_sha256": {"m.layers.0.w": HASH, "m.layers.2.w": HASH}}, "no hash of a weight of layer 10"),
    ({"tensor_sha256": {f"m.layers.{i}.w": "x" for i in (0, 2, 10)}}, rf"m\.layers\.0\.w'\] {SHA}"),
    ({"tensor_sha256": [HASH]}, "tensor_sha256 is not a record"),
    ({"training": [1]}, "training is not a record"),
    ({"training": {"a": float("nan")}}, "training holds a value of type float"),
    ({"training": {"a": 2**63}}, "training holds a value of type int"),
    ({"training": {"a": "\ud800"}}, "training holds"),
    ({"training": {"a": list(range(100_000))}}, "training holds values nested too deep or too many"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[str(c)[:50] for c, _ in REFUSALS])
def test_every_broken_rule_is_refused(
    changes: dict[str, Any], message: str, suffix: str, tmp_path: Path
) -> None:
    path = write(record(**changes), tmp_path / f"spatial{suffix}")
    with pytest.raises(UserError, match=message) as refusal:
        load_coefficients(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def nested(levels: int) -> Any:
    """Lists that share their items: 2 to the power of ``levels`` values in a few bytes."""
    value: Any = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({3: 4}, "3 is not a field"),
        ({torch.ones(2): 4}, "is not a field"),
        ({"head_scale": torch.ones(3, 4, dtype=torch.bfloat16)}, r"head_scale is torch\.bfloat16"),
        ({"head_scale": [torch.ones(4), torch.ones(0), torch.ones(4)]}, r"head_scale\[1\] has shape \[0\]"),
        ({"head_scale": torch.ones(3, 4).to_sparse()}, "dense float32"),
        ({"head_scale": torch.ones(3, 4, device="meta")}, "dense float32"),
        ({"mlp_scale": torch.ones(1).expand(10**12)}, "claims to be larger"),
        ({"scope": torch.ones(3)}, "scope is a ndarray"),
        ({"format": torch.ones(3)}, "format is not"),
        ({"bound": {"kind": torch.ones(2), "r": torch.ones(2)}}, "bound must be kind"),
        ({"tensor_sha256": {3: HASH}}, "tensor_sha256 is not a record"),
        ({"training": {"a": torch.ones(3)}}, "training holds a value of type Tensor"),
        ({"training": {3: 4}}, "training holds a key"),
        ({"training": {"a": nested(30)}}, "nested too deep or too many"),
        ({"training": {"a": nested(100)}}, "nested too deep or too many"),
        ({"training": {"a": b"x"}}, "training holds a value of type bytes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_only_a_pickle_can_hold(changes: dict[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_coefficients(write(record() | changes, tmp_path / "spatial.pt"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_refused_on_reading_is_not_written(suffix: str, tmp_path: Path) -> None:
    good = load_coefficients(write(record(), tmp_path / "good.safetensors"))
    broken = replace(good, mlp_scale=np.full(3, NAN))
    with pytest.raises(UserError, match="mlp_scale holds NaN"):
        save_coefficients(broken, tmp_path / f"c{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["good.safetensors"]
