"""What a runtime has no kernels for is refused while planning, or written in operators that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError
from scale_export.model.base import open_base
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.models import FAMILIES


def folded(directory: Path, target: str, language: dict[str, Any], **asked: Any) -> Any:
    """What a fold of a random LLaVA with other fields of its language model comes to."""
    FAMILIES["llava"](directory=directory / "model", **language)
    base = open_base(str(directory / "model"))
    coeffs = saved(random_coefficients(base), directory)
    return fold_on(base, coeffs, target, out=directory / "package", evaluation="none", **asked)


@pytest.mark.parametrize("head_dim", [8, 24, 48, 72])
def test_heads_that_attention_cannot_turn_are_turned_before_it(tmp_path: Path, head_dim: int):
    """GroupQueryAttention turns multiples of 16 only."""
    outcome = folded(tmp_path, "cpu", {"head_dim": head_dim}, precision="float32")
    assert outcome.passed and outcome.report.lowering.passed


@pytest.mark.parametrize("head_dim", [12, 20])
def test_heads_that_attention_does_not_take_are_refused(tmp_path: Path, head_dim: int):
    with pytest.raises(
        UserError, match=f"head_dim {head_dim} is not a multiple of 8, .*: choose target coreml"
    ):
        folded(tmp_path, "cpu", {"head_dim": head_dim}, precision="float32")


@pytest.mark.parametrize(
    ("target", "language", "options", "words"),
    [
        (
            "coreml",
            {"intermediate_size": 112},
            {"precision": "int4"},
            "MLP width 112 .*: give --block-size 16",
        ),
        (
            "coreml",
            {"intermediate_size": 104},
            {"precision": "int4"},
            "no block size fits; use --precision float16",
        ),
        ("coreml", {"intermediate_size": 104}, {"precision": "int8"}, "choose target cpu, whose kernels pad"),
        (
            "cpu",
            {"hidden_size": 72},
            {"precision": "int4"},
            "hidden size 72 .* no block size fits; use --precision",
        ),
        ("cpu", {"hidden_size": 80}, {"precision": "int8"}, "hidden size 80 .*: give --block-size 16"),
        ("cpu", {"hidden_size": 1024}, {"precision": "int4", "block_size": 512}, "block size 512 is refused"),
        (
            "coreml",
            {"hidden_size": 1024},
            {"precision": "int8", "block_size": 1024},
            "block size 1024 is refused",
        ),
    ],
)
def test_a_width_without_a_block_says_what_works(
    tmp_path: Path, target: str, language: dict[str, Any], options: dict[str, Any], words: str
):
    with pytest.raises(UserError, match=words):
        folded(tmp_path, target, language, quantizer="rtn", calib="none", **options)


def test_what_a_refusal_names_works(tmp_path: Path):
    options = {"precision": "int4", "block_size": 16, "quantizer": "rtn", "calib": "none"}
    outcome = folded(tmp_path, "coreml", {"intermediate_size": 112}, **options)
    assert outcome.report.lowering.passed
