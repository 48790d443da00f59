"""Scalars of other trainers, by patterns that their user states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scale_export.coefficients.file import Coefficients
from scale_export.coefficients.rules import Bound
from scale_export.core.errors import UserError
from scale_export.model.importing import import_state_dict
from tests.helpers.models import FAMILIES

Trained = tuple[Any, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of three layers with four heads, and its directory."""
    directory = tmp_path_factory.mktemp("base") / "model"
    return FAMILIES["llava"](directory=directory), directory


def import_from(trained: Trained, path: Path, **changes: Any) -> Coefficients:
    patterns = {"head_pattern": "net.{layer}.heads", "mlp_pattern": "net.{layer}.mlp", "scope": "last"}
    return import_state_dict(path, model=trained[0], base_dir=trained[1], **(patterns | changes))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_state_dict_import(trained: Trained, suffix: str, tmp_path: Path) -> None:
    state = {
        "net.2.heads": torch.tensor([[0.5, 1.5, 0.25, 1.75]], dtype=torch.bfloat16),
        "net.0.heads": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "net.0.mlp": torch.tensor(0.5),
        "net.1.mlp": torch.tensor([2.0]),
    }
    path = tmp_path / f"state{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    made = import_from(trained, path)
    attention, mlp = made.dense(3, 4)
    assert made.layer_indices == (0, 1, 2)
    assert attention.tolist() == [[1, 2, 3, 4], [1, 1, 1, 1], [0.5, 1.5, 0.25, 1.75]]
    assert mlp.tolist() == [0.5, 2, 1]


ONES, ONE = torch.ones(4), torch.ones(1)


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        (
            {"net.0.heads": ONES, "net.0.bias": ONE, "net.0.mlp": ONE},
            {},
            "'net.0.bias' of .* matches no pattern",
        ),
        ({"net.0.heads": ONES, "net.0.mlp": ONE}, {"mlp_pattern": None}, "'net.0.mlp' .*no pattern"),
        (
            {"net.0.mlp": ONE},
            {},
            r"no key of .* matches the pattern 'net\.\{layer\}\.heads'; its keys are net\.0\.mlp: write",
        ),
        ({"net.0.heads": ONES}, {}, r"matches the pattern 'net\.\{layer\}\.mlp'"),
        ({"a.0": ONES}, {"head_pattern": "a.{layer}", "mlp_pattern": "a.{layer}"}, "'a.0' .* matches both"),
        ({"a.0": ONES}, {"head_pattern": None, "mlp_pattern": None}, "no pattern was given .*which are a.0"),
        ({}, {}, "holds no tensor"),
        ({"net.00.heads": ONES}, {"mlp_pattern": None}, "matches the pattern"),
        ({"netX0Xheads": ONES}, {"mlp_pattern": None}, "matches the pattern"),
        ({"heads": ONES}, {"head_pattern": "heads"}, r"must hold \{layer\} once.*one tensor for each"),
        (
            {"net.0.heads": torch.ones(5)},
            {"mlp_pattern": None},
            "'net.0.heads' .* holds 5 values.*4 query heads",
        ),
        (
            {"net.7.heads": ONES},
            {"mlp_pattern": None},
            "'net.7.heads' .* is for layer 7, and the model's last layer is 2",
        ),
        (
            {"net.0.heads": ONES, "net.0.mlp": torch.ones(2)},
            {},
            "'net.0.mlp' .* holds 2 values.*1 MLP output",
        ),
        ({"net.0.heads": ONES}, {"mlp_pattern": None, "scope": "some"}, "scope is 'some'"),
        ({"net.0.heads": ONES}, {"mlp_pattern": None, "bound": 1.0}, "--values a"),
        (
            {"net.0.heads": ONES},
            {"mlp_pattern": None, "bound": -1.0, "values": "a"},
            "--bound -1.0 is refused",
        ),
        ({"net.0.heads": ONES * float("nan")}, {"mlp_pattern": None}, "holds NaN or infinity"),
        ({"net.0.heads": ONES * 0.1}, {"mlp_pattern": None}, r"lie around 0\.1.*--values a"),
        ({"net.0.heads": ONES * -3}, {"mlp_pattern": None}, r"lie around -3.*--values a"),
        ({"net.0.heads": [1.0]}, {}, "not a plain state dict"),
        ([ONES], {}, "not a plain state dict"),
        ({0: ONES}, {}, "not a plain state dict"),
        ({"net.0.heads": ONES[:1].bfloat16().expand(1 << 40)}, {}, "claims to be larger than the file"),
        ({f"net.{n}.heads": ONES[:1].expand(500) for n in range(3)}, {}, "claims to be larger than the file"),
        ({"net.0.heads": ONES.to_sparse()}, {}, "convert it to a dense"),
        ({"net.0.heads": ONES.to(torch.complex64)}, {}, "is torch.complex64; convert it"),
        ({f"net.{'9' * 5000}.heads": ONES}, {"mlp_pattern": None}, "no key of .* matches the pattern"),
        ({"net\n.0": ONES}, {}, r"its keys are net\\n\.0: write"),
        ({"n" * 5000: ONES}, {}, "its keys are n{80}…: write"),
        ({"format": "scale-coefficients", "head_scale": ONES}, {}, "a coefficient file already"),
    ],
)
def test_state_dicts_that_are_refused(
    trained: Trained, state: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(UserError, match=message) as refused:
        import_from(trained, tmp_path / "state.pt", **changes)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    assert "layer_indices" not in str(refused.value) and "coefficients name" not in str(refused.value)


def test_trained_values_become_factors(trained: Trained, tmp_path: Path) -> None:
    a = torch.tensor([0.0, 1.0, -1.0, 50.0])
    torch.save({"net.1.heads": a}, tmp_path / "state.pt")
    made = import_from(trained, tmp_path / "state.pt", mlp_pattern=None, values="a", bound=0.5)
    assert np.allclose(made.head_scale[0], 1 + 0.5 * np.tanh(a.numpy()), rtol=0, atol=1e-7)
    assert made.bound == Bound(kind="tanh", r=0.5) and made.layer_indices == (1,)


def test_factors_around_0_are_taken_where_they_are_said_to_be_factors(
    trained: Trained, tmp_path: Path
) -> None:
    torch.save({"net.1.heads": torch.zeros(4)}, tmp_path / "state.pt")
    made = import_from(trained, tmp_path / "state.pt", mlp_pattern=None, values="s")
    assert made.head_scale[0].tolist() == [0, 0, 0, 0]


def test_mlps_alone(trained: Trained, tmp_path: Path) -> None:
    torch.save({"net.1.mlp": torch.tensor(1.5)}, tmp_path / "state.pt")
    made = import_from(trained, tmp_path / "state.pt", head_pattern=None)
    assert made.mlp_scale.tolist() == [1.5] and made.head_scale[0].tolist() == [1, 1, 1, 1]
