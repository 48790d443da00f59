"""Whole runs on a random model: a package that verifies, reproduces, fails closed, and refuses with nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError, fold, open_package, verify
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.core.resources import resource_dir
from scale_export.package.manifest import open_package_files
from scale_export.proof import measure as measuring
from tests.helpers import parity as made
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.trees import tree


def test_the_package_holds_what_the_contract_names(package: Path):
    files = open_package_files(package)
    names = set(files.manifest.files)
    assert {
        "decoder.onnx",
        "decoder.onnx.data",
        "vision.onnx",
        "embedding.onnx",
        "scale.onnx_adapter",
        "scale.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "parity.json",
        "report.html",
        "selftest/cases.json",
        "selftest/expected.safetensors",
    } <= names
    parity = json.loads((package / "parity.json").read_text())
    assert parity["schema"] == 1 and parity["passed"] is True
    assert set(parity["legs"]) == {"fold", "lowering", "quantization", "runtime", "preprocessing", "task"}
    assert parity["legs"]["fold"]["value"] <= parity["legs"]["fold"]["limit"]
    named = " ".join(parity["not_checked"])
    for leg, result in parity["legs"].items():
        assert (result is None) == (f"{leg}:" in named), leg


def test_two_runs_give_the_same_bytes(package: Path, coefficient_file: Path, base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    again = tmp_path / "gated"
    with traced_anew():
        fold(
            coefficient_file,
            "cpu",
            out=again,
            model=str(base.directory),
            precision="float32",
            evaluation="none",
        )
    first, second = tree(package), tree(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_verify_measures_every_leg_again(package: Path, base_of: Any):
    found = verify(package, model=str(base_of("llava", "llama").directory), evaluation="none")
    assert found.passed and found.parity is not None
    assert found.parity["legs"]["lowering"]["passed"] is True
    assert found.selftest["ids_identical"] is True
    assert found.selftest["value"] <= found.selftest["limit"]


def test_verify_without_the_base_says_the_way_out(package: Path):
    with pytest.raises(UserError, match="--selftest"):
        verify(package, evaluation="none", model="no/such/model/here")
    assert verify(package, selftest_only=True).parity is None


def test_a_failed_leg_keeps_the_package_out_of_its_place(
    coefficient_file: Path, base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "fold_leg", lambda *a: made.fold(1.0))
    out = tmp_path / "broken"
    base = base_of("llava", "llama")
    outcome = fold_on(base, coefficient_file, "cpu", out=out, precision="float32", evaluation="none")
    assert not outcome.passed and not out.exists()
    assert outcome.path == tmp_path / "broken.failed"
    assert (outcome.path / "report.html").exists() and not (outcome.path / "manifest.json").exists()
    with pytest.raises(UserError):
        open_package(outcome.path)


@pytest.mark.parametrize("mode", ["two-phase", "weights"])
def test_packages_with_folded_weights_answer_but_refuse_other_strengths(
    base_of: Any, tmp_path: Path, mode: str
):
    base = base_of("llava", "llama")
    scope: Any = "last" if mode == "two-phase" else "all"
    coeffs = saved(random_coefficients(base, scope), tmp_path)
    out = tmp_path / "package"
    outcome = fold_on(base, coeffs, "cpu", out=out, precision="float32", fold=mode, evaluation="none")
    assert outcome.passed, outcome.parity
    opened = open_package(out, threads=1)
    assert isinstance(opened.answer([], "hello", max_new_tokens=3), str)
    with pytest.raises(UserError, match="--fold gate"):
        opened.scale = 0.5
    assert opened.scale == 1


def test_a_killed_run_leaves_nothing_in_the_packages_place(
    coefficient_file: Path, base_of: Any, tmp_path: Path
):
    """SIGKILL in the middle of an export: no package, and the next run cleans up what was left."""
    out = tmp_path / "killed"
    base = base_of("llava", "llama")
    code = (
        "from scale_export.pipeline.api import fold\n"
        f"fold({str(coefficient_file)!r}, 'cpu', out={str(out)!r}, model={str(base.directory)!r}, evaluation='none')"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".killed.partial-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(tmp_path.glob(".killed.partial-*")) and not out.exists()
    outcome = fold_on(base, coefficient_file, "cpu", out=out, precision="float32", evaluation="none")
    assert outcome.passed
    assert [p.name for p in tmp_path.iterdir()] == ["killed"]


def test_a_package_beyond_its_targets_size_is_refused(coefficient_file: Path, base_of: Any, tmp_path: Path):
    text = (resource_dir("targets") / "cpu.toml").read_text(encoding="utf-8")
    small = tmp_path / "small.toml"
    small.write_text(text.replace('name = "cpu"', 'name = "small"\nmax_package_bytes = 750_000'))
    base, out = str(base_of("llava", "llama").directory), tmp_path / "out" / "package"
    with pytest.raises(UserError, match="allows 750,000"):
        fold(coefficient_file, str(small), out=out, model=base, precision="float32", evaluation="none")
    assert not out.parent.exists()
