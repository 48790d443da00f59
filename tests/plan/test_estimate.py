"""What a fold is said to take, beside what it took."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError
from scale_export.core.resources import resource_dir
from scale_export.package.manifest import open_package_files
from scale_export.pipeline.fold import plan_fold
from scale_export.pipeline.request import FoldRequest
from scale_export.plan.estimate import estimates, matrix_bytes, reach
from scale_export.search.budget import _Bench, check_reach, parse_budget
from tests.helpers.emission import weights_of
from tests.helpers.plans import plan_of


def test_the_size_is_about_that_of_the_package(package: Path, base_of: Any, coefficient_file: Path):
    base = base_of("llava", "llama")
    plan = plan_fold(FoldRequest(coefficient_file, "cpu", out="nowhere", precision="float32"), base)
    files = open_package_files(package).manifest.files
    held = {name: entry.size for name, entry in files.items() if name.endswith(".data")}
    matrices = matrix_bytes(plan)
    written = held["decoder.onnx.data"] + held.get("embedding.onnx.data", files["embedding.onnx"].size)
    assert matrices < written < 1.1 * matrices  # beside them: norms, and the tables of rotary positions
    said = next(estimates(plan))
    found = re.search(r"about ([\d.]+) MB: .* ([\d.]+) MB, the vision tower about ([\d.]+) MB", said)
    assert found, said
    total, decoder, _ = (1e6 * float(number) for number in found.groups())
    assert decoder == pytest.approx(matrices, abs=6e4)
    assert total == pytest.approx(sum(held.values()), rel=0.1)


def test_the_reach_of_bits_is_that_of_the_search(base_of: Any):
    plan = plan_of(base_of("llava", "llama"), bits="uniform")
    bench = _Bench(plan, weights_of(plan).statistics)
    assert reach(plan) == (bench.size - sum(map(bench.saved, bench.wide)), bench.size)
    assert matrix_bytes(plan) == reach(plan)[0]
    assert "at 4 bits and" in next(estimates(plan, under_budget=True))


def test_a_size_out_of_reach_is_refused_before_a_weight_is_read(
    base_of: Any, coefficient_file: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of("llava", "llama")
    plan = plan_of(base)
    least, most = reach(plan)
    monkeypatch.setattr(type(base.checkpoint), "tensor", lambda *args: pytest.fail("a weight was read"))
    asked = {"precision": "int4", "calib": "gridworld", "out": "nowhere"}
    with pytest.raises(UserError, match=rf"{least:,} bytes where every matrix has 4 bits, and {most:,} at 8"):
        plan_fold(FoldRequest(coefficient_file, "cpu", budget="size=1kB", **asked), base)
    with pytest.raises(UserError, match="bits per matrix need int8 or int4"):
        plan_fold(
            FoldRequest(coefficient_file, "cpu", budget="size=1GB", **asked | {"precision": "float32"}), base
        )
    with pytest.raises(UserError, match="name a set with --calib"):
        plan_fold(FoldRequest(coefficient_file, "cpu", budget="size=1GB", **asked | {"calib": "none"}), base)
    check_reach(plan, parse_budget(f"size={math.ceil(least / 1e3)}kB"))


def test_a_package_larger_than_its_target_allows_is_refused_before_a_weight_is_read(
    base_of: Any, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of("llava", "llama")
    most = reach(plan_of(base))[1]
    text = (resource_dir("targets") / "cpu.toml").read_text(encoding="utf-8")
    small = re.sub(r"(?m)^# max_package_bytes.*$", f"max_package_bytes = {most - 1}", text)
    assert small != text
    (tmp_path / "small.toml").write_text(small.replace('name = "cpu"', 'name = "small"'), encoding="utf-8")
    monkeypatch.setattr(type(base.checkpoint), "tensor", lambda *args: pytest.fail("a weight was read"))
    asked = {"calib": "gridworld", "out": "nowhere"}
    target = str(tmp_path / "small.toml")
    with pytest.raises(UserError, match=f"alone take {most:,} bytes, and target small allows"):
        plan_fold(FoldRequest(coefficient_file, target, precision="int8", **asked), base)
    assert plan_fold(FoldRequest(coefficient_file, target, precision="int4", **asked), base)
    assert plan_fold(FoldRequest(coefficient_file, target, precision="int8", budget="kl<=1", **asked), base)


@pytest.mark.parametrize(("target", "words"), [("cpu", "on two cores"), ("coreml", "was not measured")])
def test_the_time_is_that_which_was_measured(target: str, words: str, base_of: Any, coefficient_file: Path):
    plan = plan_fold(FoldRequest(coefficient_file, target, out="nowhere"), base_of("llava", "llama"))
    assert words in list(estimates(plan))[1]
