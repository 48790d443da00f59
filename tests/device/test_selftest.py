"""The self-test: a package may ask more of itself than its precision must fulfil, and never less."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from scale_export.core import limits
from scale_export.core.errors import UserError
from scale_export.core.records import Float32
from scale_export.core.words import PRECISIONS, Precision
from scale_export.device.onnxruntime import engine
from scale_export.device.onnxruntime.engine import DecoderSession
from scale_export.device.package import open_package
from scale_export.device.selftest import (
    CASES,
    EXPECTED,
    PIXELS,
    STRENGTHS,
    allowed_tolerance,
    gate_response,
    run_selftest,
)
from tests.helpers.cli import run
from tests.helpers.packages import plant


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tolerance_beyond_the_precisions_is_refused(precision: Precision) -> None:
    ceiling = limits.SELFTEST_RELATIVE[precision]
    assert allowed_tolerance(ceiling, precision) == ceiling
    assert allowed_tolerance(ceiling / 2, precision) == ceiling / 2
    for claimed in (ceiling * 1.001, 1e9, float("inf"), float("nan"), -1, "1", None, [0]):
        with pytest.raises(UserError, match="self-test"):
            allowed_tolerance(claimed, precision)


def test_every_precision_of_graphs_has_a_ceiling() -> None:
    assert set(limits.SELFTEST_RELATIVE) == set(PRECISIONS) == set(get_args(Precision)) - {"stored"}


def test_a_package_that_widens_its_own_tolerance_is_refused(package: Path, tmp_path: Path) -> None:
    forged = tmp_path / "package"
    shutil.copytree(package, forged)
    table = json.loads((forged / CASES).read_text(encoding="utf-8"))
    plant(forged, CASES, json.dumps(table | {"tolerance": 1e9}).encode())
    with pytest.raises(UserError, match=r"0\.0001 at most"):
        run_selftest(open_package(forged))


def test_a_package_without_golden_cases_fails(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = tmp_path / "package"
    shutil.copytree(package, forged)
    table = json.loads((forged / CASES).read_text(encoding="utf-8"))
    plant(forged, CASES, json.dumps(table | {"cases": []}).encode())
    found = run_selftest(open_package(forged))
    assert not found.passed and found.cases == 0 and found.error.finite is None
    assert run("verify", str(forged), "--selftest") == 1
    assert "no golden case" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: np.full_like(logits, np.nan),
        lambda logits: np.full_like(logits, np.inf),
        lambda logits: logits[:1],
        lambda logits: logits[:0],
    ],
    ids=["nan", "inf", "one position", "nothing"],
)
def test_expected_logits_that_hold_nothing_fail(
    package: Path, tmp_path: Path, change: Callable[[Float32], Float32]
) -> None:
    forged = tmp_path / "package"
    shutil.copytree(package, forged)
    expected = load_file(forged / EXPECTED)
    plant(forged, EXPECTED, save(expected | {"1": change(expected["1"])}))
    found = run_selftest(open_package(forged))
    assert not found.passed and found.error.value == float("inf") and found.ids_identical


def test_gated_packages_are_asked_at_other_strengths_too(package: Path) -> None:
    opened = open_package(package)
    found = run_selftest(opened)
    assert found.passed and found.gate_acts and opened.scale == 1
    assert [result.strength for result in found.results] == [1, 1, 1, 1, *STRENGTHS]
    assert found.gate_responses == pytest.approx([1.0, 1.0], abs=1e-3)
    assert found.pixels is not None and found.pixels.value == 0


def test_a_runtime_that_ignores_the_scalars_fails(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-node does with inputs that have defaults: it takes them and changes nothing."""
    feeds = DecoderSession._feeds
    monkeypatch.setattr(
        DecoderSession, "_feeds", lambda self, step, mask, scalars: feeds(self, step, mask, None)
    )
    found = run_selftest(open_package(package))
    assert not found.passed and found.gate_acts is False
    assert found.gate_responses == (0.0, 0.0)


def test_a_runtime_that_drops_the_gate_fails(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers like the base model, whatever the strength."""
    monkeypatch.setattr(
        engine, "gated_tokens", lambda step, scope: np.zeros(step.inputs_embeds.shape[:2], np.float32)
    )
    found = run_selftest(open_package(package))
    assert not found.passed and found.gate_acts is False


def test_scalars_that_hardly_act_tell_nothing_of_the_gate() -> None:
    full = np.ones((2, 3), np.float32)
    near, far = full - np.float32(1e-4), np.array([[1, 0, 1], [1, 1, 0.5]], np.float32)
    assert gate_response((full, near), (full, full), 0.05) is None
    assert gate_response((full, far), (full, full), 0.05) == 0
    assert gate_response((full, far), (full, far), 0.05) == 1
    assert gate_response((full, far), (full, np.full_like(full, np.nan)), 0.05) is None


def test_other_pixels_than_the_recorded_ones_fail(package: Path, tmp_path: Path) -> None:
    forged = tmp_path / "package"
    shutil.copytree(package, forged)
    pixels = load_file(forged / PIXELS)
    pixels["0.pixel_values"][0, 0, 3, 3] += np.float32(0.05)
    plant(forged, PIXELS, save(pixels))
    found = run_selftest(open_package(forged))
    assert not found.passed and found.error.passed
    assert found.pixels is not None and found.pixels.value > limits.PIXEL_LEVELS
