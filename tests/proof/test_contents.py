"""What a package states beside its graphs: forged with its hashes renewed, each statement is found wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import verify
from scale_export.backends.interface import graph_backend
from scale_export.coefficients.file import load_coefficients
from scale_export.device.onnxruntime.host import FILE
from scale_export.package.manifest import open_package_files
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.proof.contents import (
    Contents,
    Statement,
    coefficient_statements,
    package_statements,
    side_statements,
)
from tests.helpers.cli import last_json, run
from tests.helpers.packages import plant, reseal


@pytest.fixture
def wrong(base_of: Any) -> Callable[[Path], list[str]]:
    """The names of the statements of a package that are wrong."""

    def look(package: Path) -> list[str]:
        files = open_package_files(package)
        coefficients = load_coefficients(files.path(files.manifest.coefficients))
        plan = plan_again(files, coefficients, Origins(model=str(base_of("llava", "llama").directory)))
        statements = [*package_statements(files, plan)]
        side = graph_backend(plan.target.backend).side_facts(package)
        assert side is not None
        scalars = coefficients.dense(plan.base.spec.num_layers, plan.base.spec.num_heads)
        statements += side_statements(side, plan, scalars if plan.fold == "gate" else None)
        return [statement.name for statement in Contents(statements=tuple(statements)).wrong]

    return look


@pytest.fixture
def forged(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "package"))


def edit(package: Path, name: str, **changes: Any) -> None:
    table = json.loads((package / name).read_text(encoding="utf-8"))
    plant(package, name, json.dumps(table | changes).encode())


def test_sound_packages_state_what_they_must(package: Path, phone_package: Path, wrong: Any) -> None:
    assert wrong(package) == [] and wrong(phone_package) == []


@pytest.mark.parametrize(
    ("name", "value"), [("context_length", 5120), ("image_token_id", 7), ("extras", {"a": 1})]
)
def test_a_forged_manifest_is_found(forged: Path, wrong: Any, name: str, value: Any) -> None:
    reseal(forged, lambda table: table.update({name: value}))
    assert wrong(forged) == [f"{name} of manifest.json"]


def test_another_end_token_is_found(forged: Path, wrong: Any) -> None:
    edit(forged, "generation_config.json", eos_token_id=9)
    assert wrong(forged) == ["generation_config.json", "the list of end tokens"]


@pytest.mark.parametrize("rule", [{"suppress_tokens": [5]}, {"repetition_penalty": 3.0}, {"do_sample": True}])
def test_other_sampling_rules_are_found(forged: Path, wrong: Any, rule: dict[str, Any]) -> None:
    edit(forged, "generation_config.json", **rule)
    assert wrong(forged) == ["generation_config.json"]


def test_what_changes_when_a_model_is_saved_again_is_not(forged: Path, wrong: Any) -> None:
    edit(forged, "generation_config.json", transformers_version="0.0")
    assert wrong(forged) == []


def test_another_config_is_found(forged: Path, wrong: Any) -> None:
    plant(forged, "config.json", (forged / "config.json").read_bytes().replace(b"llama", b"lLama"))
    assert "config.json" in wrong(forged)


def test_other_scalars_for_the_host_are_found(forged: Path, wrong: Any) -> None:
    scalars = json.loads((forged / FILE).read_text(encoding="utf-8"))["scalars"]
    scalars["attn_scale"][1][0] += 1e-3
    edit(forged, FILE, scalars=scalars)
    assert wrong(forged) == [f"the scalars of layer 1 in {FILE}"]
    edit(forged, FILE, scalars=None)
    assert wrong(forged) == [f"the count of layers with scalars in {FILE}"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"eos_token_ids": [9]}, "the list of end tokens"),
        ({"image_token_id": 9}, "image_token_id"),
        ({"context_length": 9}, "context_length"),
    ],
)
def test_what_a_core_ml_host_is_told_is_compared(
    phone_package: Path, wrong: Any, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    forged = Path(shutil.copytree(phone_package, tmp_path / "package"))
    edit(forged, "runtime.json", **changes)
    assert wrong(forged) == [f"{name} of runtime.json"]


def test_a_core_ml_hosts_scalars_are_compared(phone_package: Path, wrong: Any, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(phone_package, tmp_path / "package"))
    scalars = json.loads((forged / "runtime.json").read_text())["scalars"]
    assert scalars is not None
    scalars["mlp_scale"][2] = 1.5
    edit(forged, "runtime.json", scalars=scalars)
    assert wrong(forged) == ["the scalars of layer 2 in runtime.json"]


def test_a_users_own_coefficients_are_compared(coefficient_file: Path) -> None:
    own = load_coefficients(coefficient_file)
    assert Contents(statements=tuple(coefficient_statements(own, own))).passed
    heads = (own.head_scale[0] * np.float32(1.001), *own.head_scale[1:])
    for other in (
        replace(own, head_scale=heads),
        replace(own, mlp_scale=own.mlp_scale * np.float32(0.999)),
        replace(own, scope="all" if own.scope == "last" else "last"),
        replace(own, layer_indices=own.layer_indices[1:], head_scale=heads[1:], mlp_scale=own.mlp_scale[1:]),
    ):
        assert len(Contents(statements=tuple(coefficient_statements(own, other))).wrong) >= 1


def test_nothing_compared_is_nothing_proved() -> None:
    assert not Contents(statements=()).passed
    assert Contents(statements=(Statement(name="a", found=[1], expected=(1,)),)).passed


def test_verify_fails_on_a_wrong_statement(forged: Path, base_of: Any) -> None:
    reseal(forged, lambda table: table.update(context_length=500))
    found = verify(forged, model=str(base_of("llava", "llama").directory), evaluation="none")
    assert found.report is not None and found.report.passed
    assert not found.passed and found.contents is not None
    assert [str(statement) for statement in found.contents.wrong] == [
        "context_length of manifest.json is 500, and must be 512"
    ]


def test_the_command_compares_a_users_scalars_without_the_base(
    package: Path, coefficient_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", str(package), "--selftest", "--coeffs"]
    assert run(*words, str(coefficient_file)) == 0
    assert "statements compared" in capsys.readouterr().out
    own = load_coefficients(coefficient_file)
    other = tmp_path / "other.safetensors"
    replace(own, mlp_scale=own.mlp_scale * np.float32(0.5)).save(other)
    assert run(*words, str(other), "--json") == 1
    found = last_json(capsys)
    assert not found["passed"] and "the scalars of layer" in found["contents"]["wrong"][0]
