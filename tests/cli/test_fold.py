"""``scale-export fold``: what it says before it begins, and after an export that failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scale_export.cli.fold import _way_on
from scale_export.model.base import BaseModel
from scale_export.plan.bits import MIXES
from scale_export.plan.targets import load_target
from tests.helpers.cli import last_json, run


def test_a_dry_run_says_what_the_package_will_take(
    base_of: Callable[[str, str], BaseModel], coefficient_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(base_of("llava", "llama").directory)
    command = ("fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--model", model, "--dry-run")
    assert run(*command, "--json") == 0
    size, time = last_json(capsys)["estimates"]
    assert "about" in size and "MB" in size and "about 30 s" in time
    assert run(*command) == 0
    assert size in " ".join(capsys.readouterr().out.replace("\n", " ").split())


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_is_taken_by_its_name(
    mix: str,
    base_of: Callable[[str, str], BaseModel],
    coefficient_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(base_of("llava", "llama").directory)
    command = (
        "fold",
        "--coeffs",
        str(coefficient_file),
        "--target",
        "cpu",
        "--model",
        model,
        "--precision",
        "int4",
    )
    assert run(*command, "--bits-plan", mix, "--dry-run", "--json") == 0
    said = " ".join(last_json(capsys)["decisions"])
    assert ("matrices have 8 bits" in said) == (mix != "uniform")


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("selftest<=0.1", "an export records the self-test; give it to verify"),
        ("int4.kl<=0.1", "is for int4 packages"),
        ("retentio>=1", "did you mean 'retention'"),
    ],
)
def test_requirements_are_refused_before_anything_is_measured(
    requirement: str,
    words: str,
    base_of: Callable[[str, str], BaseModel],
    coefficient_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = str(base_of("llava", "llama").directory), tmp_path / "out"
    command = (
        "fold",
        "--coeffs",
        str(coefficient_file),
        "--target",
        "cpu",
        "--model",
        model,
        "--out",
        str(out),
    )
    assert run(*command, "--require", requirement) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "failed", "passed", "words"),
    [
        (
            "int4",
            ["quantization"],
            False,
            ["scale-export doctor x.failed", "--precision int8 or float16 or float32"],
        ),
        ("w8a8", ["task", "runtime"], False, ["--precision int8 or float16 or float32"]),
        ("int8", ["quantization"], False, ["--precision float16 or float32"]),
        ("int4", ["lowering"], False, ["scale-export doctor x.failed"]),
        ("float32", ["fold"], False, ["scale-export doctor x.failed"]),
        ("int4", [], False, ["scale-export doctor x.failed"]),
        ("int4", [], True, ["a requirement did not hold"]),
    ],
)
def test_an_export_that_failed_says_what_next(
    precision: str, failed: list[str], passed: bool, words: list[str]
) -> None:
    outcome: Any = SimpleNamespace(
        path="x.failed",
        report=SimpleNamespace(failed=failed, passed=passed),
        plan=SimpleNamespace(precision=precision, target=load_target("cpu")),
    )
    said = _way_on(outcome)
    assert all(word in said for word in words)
    assert ("--precision" in said) == (any("--precision" in word for word in words) or passed)
