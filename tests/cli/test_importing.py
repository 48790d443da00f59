"""``scale-export import``: a state dict becomes a coefficient file, and int4 says what it has to do without."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scale_export.coefficients.file import load_coefficients
from scale_export.model.base import BaseModel
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.cli import last_json, run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "trained.safetensors"
    save_file({f"net.{n}.heads": np.full(4, 1.5 + n, np.float32) for n in (0, 2)}, path)
    return path


def importing(state: Path, base: BaseModel, out: Path, *more: str) -> int:
    fixed = ("--model", str(base.directory), "--scope", "last", "--head-pattern", "net.{layer}.heads")
    return run("import", str(state), *fixed, "--out", str(out), *more)


def test_a_state_dict_becomes_a_file_that_fold_takes(
    base_of: Callable[[str, str], BaseModel], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = base_of("llava", "llama"), tmp_path / "new/spatial.safetensors"
    assert importing(state, base, out, "--json") == 0
    said = last_json(capsys)
    assert said["path"] == str(out) and said["layers"] == [0, 2] and said["head_scale_range"] == [1.5, 3.5]
    made = load_coefficients(out)
    assert [row.tolist() for row in made.head_scale] == [[1.5] * 4, [3.5] * 4]
    assert made.training == {"imported_from": "trained.safetensors"}
    assert run("fold", "--coeffs", str(out), "--target", "cpu", "--precision", "int4", "--dry-run") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "The quantizer is gptq" in words and "the model writes what it is calibrated on" in words
    assert "jsonl:FILE or text:PATH" in words


def test_the_set_that_they_were_trained_on_is_kept(
    base_of: Callable[[str, str], BaseModel], state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = base_of("llava", "llama"), tmp_path / "spatial.pt"
    assert importing(state, base, out, "--data", "gridwrld") == 2
    assert "did you mean 'gridworld'" in capsys.readouterr().err and not out.exists()
    assert importing(state, base, out, "--data", "gridworld") == 0
    coefficients = load_coefficients(out)
    plan = make_plan(coefficients, base, load_target("cpu"), ExportOptions(precision="int4"))
    assert plan.quantizer == "gptq" and not any("was not taken" in words for words in plan.decisions)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("spatial.bin", (), "name it .safetensors or .pt"),
        ("taken.pt", (), "exists already"),
        ("x.pt", ("--values", "b"), "--values 'b' is unknown"),
        ("x.pt", ("--mlp-pattern", "net.{layer}.mlp"), "no key of"),
    ],
)
def test_what_is_refused_leaves_nothing(
    name: str,
    more: tuple[str, ...],
    words: str,
    base_of: Callable[[str, str], BaseModel],
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken.pt").write_bytes(b"mine")
    before = sorted(tmp_path.iterdir())
    assert importing(state, base_of("llava", "llama"), tmp_path / name, *more) == 2
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "taken.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("trained_on", "calib", "quantizer", "reason"),
    [
        (None, "auto", "gptq", r"\(none is named\), so the model writes"),
        (
            "spatialeval:/nowhere/of/mine",
            "auto",
            "gptq",
            r"\(spatialeval\) is not here\), so the model writes",
        ),
        ("my own pictures", "auto", "gptq", r"\(my own pictures\) is not here\), so the model writes"),
        ("gridworld", "none", "rtn", "was not taken, since --calib none was asked"),
    ],
)
def test_int4_says_what_it_is_calibrated_on_where_no_set_is_known(
    trained_on: str | None,
    calib: str,
    quantizer: str,
    reason: str,
    base_of: Callable[[str, str], BaseModel],
    coefficient_file: Path,
) -> None:
    coefficients = load_coefficients(coefficient_file)
    coefficients = replace(coefficients, training={} if trained_on is None else {"data": trained_on})
    for precision in ("int4", "int8"):
        options = ExportOptions(precision=precision, calib=calib)
        plan = make_plan(coefficients, base_of("llava", "llama"), load_target("cpu"), options)
        assert plan.quantizer == (quantizer if precision == "int4" else "rtn")
        said = [words for words in plan.decisions if re.search(reason, words)]
        assert len(said) == (precision == "int4")
        assert not any("/nowhere" in words for words in plan.decisions)
