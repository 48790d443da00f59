"""The folded checkpoint: exact products in the stored dtype, every other byte the base's, and each way to break it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scale_export import UserError, open_package, verify
from scale_export.backends.checkpoint import writer
from scale_export.backends.checkpoint.backend import BACKEND as backend
from scale_export.backends.checkpoint.storage import FOLDABLE, half_ulp, narrow, widen
from scale_export.core.progress import WorkLog
from scale_export.model import folding as foldings
from scale_export.model.base import BaseModel, open_base
from scale_export.model.checkpoint import INDEX_FILE, Checkpoint
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.choose import measurement_of
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import emission_of, weights_of
from tests.helpers.folds import fold_on
from tests.helpers.models import FAMILIES

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture(scope="module")
def base_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BaseModel]:
    """``base_in(dtype)``: a random LLaVA with biases, in three shards."""
    built: dict[str, BaseModel] = {}

    def build(dtype: str = "BF16") -> BaseModel:
        if dtype not in built:
            directory = tmp_path_factory.mktemp(dtype)
            model = FAMILIES["llava"](directory=directory, dtype=TORCH[dtype], **BIASED)
            (directory / "model.safetensors").unlink()
            model.save_pretrained(directory, max_shard_size=200_000 if dtype == "F32" else 100_000)
            built[dtype] = open_base(str(directory))
        return built[dtype]

    return build


@pytest.fixture(scope="module")
def package(base_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bfloat16 model's package; read only."""
    directory = tmp_path_factory.mktemp("checkpoint")
    base = base_in()
    return export(base, saved(random_coefficients(base, "all"), directory), directory / "folded").path


def export(base: BaseModel, coeffs: Path, out: Path, **options: Any) -> Any:
    return fold_on(base, coeffs, "checkpoint", out=out, evaluation="none", **options)


def plan_of(base: BaseModel, scope: Any = "all") -> Any:
    return make_plan(random_coefficients(base, scope), base, load_target("checkpoint"), ExportOptions())


def failed(base: BaseModel, directory: Path) -> list[str]:
    """The legs that fail for a written checkpoint."""
    plan = plan_of(base)
    graphs = {"checkpoint": directory / INDEX_FILE}
    measurement = measurement_of(plan)(
        plan=plan, weights=weights_of(plan), directory=directory, graphs=graphs, log=WorkLog(quiet=True)
    )
    return measurement.run(None, None).report.failed


@pytest.mark.parametrize("dtype", FOLDABLE)
def test_the_checkpoint_loads_as_the_hooked_model(base_in: Any, tmp_path: Path, dtype: str):
    base = base_in(dtype)
    assert len(base.checkpoint.weight_files()) >= 3
    outcome = export(base, saved(random_coefficients(base, "all"), tmp_path), tmp_path / "folded")
    legs = outcome.parity["legs"]
    assert outcome.passed, outcome.parity
    assert legs["fold"]["value"] <= 1e-5 and legs["storage"]["dtypes"] == [dtype]
    assert legs["tensors"]["cases"] == 9 and legs["tensors"]["untouched_identical"]
    assert 0.9 < legs["tensors"]["value"] <= legs["tensors"]["limit"]
    assert (legs["storage"]["value"] > 1e-4) == (dtype != "F32")
    assert {line.partition(":")[0] for line in outcome.parity["not_checked"]} == {
        "runtimes", "lowering", "quantization", "runtime", "task",
    }  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "qwen2_5_vl", "mistral3"])
def test_every_familys_own_layout_folds(base_of: Any, tmp_path: Path, family: str):
    """Gemma 3's scalar goes into the norm after the MLP, which multiplies by 1 + w: w' = s (1 + w) − 1."""
    base = base_of(family, "own" if "gemma" in family else "llama")
    outcome = export(base, saved(random_coefficients(base, "all"), tmp_path), tmp_path / "folded")
    assert outcome.passed, outcome.parity
    assert outcome.parity["legs"]["tensors"]["cases"] == 2 * base.spec.num_layers


def test_a_norm_folded_without_its_offset_fails(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "fold_norm", lambda columns, offset, stored: columns * stored)
    base = base_of("gemma3", "own")
    outcome = export(base, saved(random_coefficients(base, "all"), tmp_path), tmp_path / "folded")
    assert {name for name, leg in outcome.parity["legs"].items() if leg and leg["passed"] is False} >= {
        "tensors",
        "storage",
    }


def test_shards_names_order_and_metadata_are_the_bases(base_in: Any, package: Path):
    base, folded = base_in().checkpoint, Checkpoint(package)
    assert folded.stored_names() == base.stored_names()
    for before in base.weight_files():
        after = package / before.name
        raw, other = before.read_bytes(), after.read_bytes()
        header = 8 + struct.unpack("<Q", raw[:8])[0]
        assert len(raw) == len(other) and raw[:header] == other[:header]
    assert (package / INDEX_FILE).read_bytes() == (base.directory / INDEX_FILE).read_bytes()


def test_weights_are_what_pytorch_folds(base_in: Any, package: Path):
    base, folded = base_in(), Checkpoint(package)
    coefficients = random_coefficients(base, "all")
    prefix = "model.language_model.layers.1"
    heads = torch.from_numpy(np.repeat(coefficients.head_scale[1], base.spec.head_dim))
    mlp = float(coefficients.mlp_scale[1])
    for name, factor in (
        ("self_attn.o_proj.weight", heads),
        ("mlp.down_proj.weight", mlp),
        ("mlp.down_proj.bias", mlp),
    ):
        expected = (base.checkpoint.tensor(f"{prefix}.{name}").float() * factor).to(torch.bfloat16)
        assert torch.equal(folded.tensor(f"{prefix}.{name}"), expected)
    name = f"{prefix}.self_attn.o_proj.bias"
    assert torch.equal(folded.tensor(name), base.checkpoint.tensor(name))


def test_the_directory_is_a_model_and_a_package(package: Path):
    assert {p.name for p in package.iterdir() if not p.name.startswith("model-")} == {
        "chat_template.jinja", "config.json", "generation_config.json", "manifest.json", INDEX_FILE, "parity.json",
        "processor_config.json", "report.html", "scale", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not list(package.glob("*scale*.safetensors"))  # loaders would take it for weights
    page = (package / "report.html").read_text()
    assert "tensors that no scalar touches" in page and "half units of the last place" in page


def test_two_runs_give_the_same_bytes(base_in: Any, package: Path, tmp_path: Path):
    base = base_in()
    again = tmp_path / "folded"
    export(base, saved(random_coefficients(base, "all"), tmp_path), again)
    for file in package.rglob("*"):
        assert file.is_dir() or file.read_bytes() == (again / file.relative_to(package)).read_bytes(), (
            file.name
        )


def test_run_is_refused_and_verify_says_what_was_not_checked(base_in: Any, package: Path, capsys: Any):
    with pytest.raises(UserError, match=r"folded Hugging Face checkpoint.*llama\.cpp"):
        open_package(package).answer([], "hello")
    found = verify(package, selftest_only=True)
    assert found.passed and found.selftest is None and found.parity is None
    again = verify(package, model=str(base_in().directory), evaluation="none")
    assert again.passed and again.parity is not None
    assert again.parity == json.loads((package / "parity.json").read_text())


def test_a_folded_checkpoint_can_be_a_base_again(package: Path, tmp_path: Path):
    base = open_base(str(package))
    outcome = export(base, saved(random_coefficients(base, "last", (2,)), tmp_path), tmp_path / "twice")
    assert outcome.passed and outcome.parity["legs"]["tensors"]["cases"] == 3


def test_last_token_scalars_are_refused(base_in: Any, tmp_path: Path):
    base = base_in()
    coeffs = saved(random_coefficients(base, "last"), tmp_path)
    for mode in ("auto", "weights", "gate"):
        with pytest.raises(UserError, match=r"(choose|use) a target that gates"):
            export(base, coeffs, tmp_path / "out", fold=mode)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"block_size": 32}, "quantizes nothing"),
        ({"parity": "ful"}, "full"),
    ],
)
def test_options_of_graphs_are_refused(base_in: Any, tmp_path: Path, options: Any, words: str):
    coeffs = saved(random_coefficients(base_in(), "all"), tmp_path)
    with pytest.raises(UserError, match=words):
        export(base_in(), coeffs, tmp_path / "out", **options)


def copied_base(base: BaseModel, directory: Path) -> Path:
    return Path(shutil.copytree(base.directory, directory / "base"))


def test_weights_in_float64_are_refused(base_in: Any, tmp_path: Path):
    """Fp8 and integers are refused of any base, see ``check_plain``."""
    directory = copied_base(base_in("F16"), tmp_path)
    name = next(n for n in Checkpoint(directory).stored_names() if "layers.1.mlp.down_proj.weight" in n)
    file = Checkpoint(directory).stored(name).file
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].to(torch.float64)}, file, {"format": "pt"})
    base = open_base(str(directory))
    plan = make_plan(
        random_coefficients(base_in("F16"), "all"), base_in("F16"), load_target("checkpoint"), ExportOptions()
    )
    with pytest.raises(UserError, match=r"down_proj.weight is stored as F64.*bfloat16"):
        backend.check(replace(plan, base=base))


def test_a_tensor_that_is_stored_twice_is_refused(base_in: Any, tmp_path: Path):
    directory = copied_base(base_in(), tmp_path)
    checkpoint = Checkpoint(directory)
    name = next(n for n in checkpoint.stored_names() if "layers.1.mlp.down_proj.weight" in n)
    other = next(f for f in checkpoint.weight_files() if f != checkpoint.stored(name).file)
    save_file(
        {**load_file(other), name: load_file(checkpoint.stored(name).file)[name]}, other, {"format": "pt"}
    )
    with pytest.raises(UserError, match="a loader may take either"):
        backend.check(plan_of(open_base(str(directory))))


def test_a_weight_beyond_float16_is_refused(base_in: Any, tmp_path: Path):
    base = base_in("F16")
    coefficients = random_coefficients(base, "all")
    huge = replace(coefficients, mlp_scale=np.array([1, 1e6, 1], np.float32))
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.\w+ is too large for F16"):
        export(base, saved(huge, tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", FOLDABLE)
def test_narrowing_rounds_as_pytorch_does(dtype: str):
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * np.float32(10) ** np.arange(
        -32, 32
    ).repeat(64)
    values = np.concatenate(
        [values, np.float32([0, -0.0, 1, 1.00390625, 1.01171875, 65504, 65520, 3.4e38, np.inf])]
    )
    stored = torch.from_numpy(values).to(TORCH[dtype])
    assert np.array_equal(widen(narrow(values, dtype), dtype), stored.float().numpy())
    assert np.isnan(widen(narrow(np.float32([np.nan]), dtype), dtype)).all()
    finite = np.isfinite(stored.float().numpy())
    exact = values[finite].astype(np.float64)
    assert (np.abs(stored.double().numpy()[finite] - exact) <= half_ulp(exact, dtype)).all()


# Sabotages: what goes wrong while folding, or with the files afterwards, fails the leg that guards it.


def swapped_heads(coefficients: Any) -> Any:
    swap = [1, 0, *range(2, coefficients.num_heads)]
    return replace(coefficients, head_scale=tuple(row[swap] for row in coefficients.head_scale))


def dropped_scalar(coefficients: Any) -> Any:
    mlp = coefficients.mlp_scale.copy()
    mlp[1] = 1
    return replace(coefficients, mlp_scale=mlp)


@pytest.mark.parametrize("broken", [swapped_heads, dropped_scalar])
def test_wrong_scalars_fail_all_three_legs(base_in: Any, tmp_path: Path, monkeypatch: Any, broken: Any):
    base = base_in()
    factors = foldings.fold_factors
    monkeypatch.setattr(foldings, "fold_factors", lambda spec, c: factors(spec, broken(c)))
    outcome = export(base, saved(random_coefficients(base, "all"), tmp_path), tmp_path / "out")
    legs = outcome.parity["legs"]
    assert not outcome.passed and not (tmp_path / "out").exists()
    assert [name for name, leg in legs.items() if leg and not leg["passed"]] == ["fold", "tensors", "storage"]


def test_an_unscaled_bias_fails(base_in: Any, tmp_path: Path, monkeypatch: Any):
    base = base_in()
    monkeypatch.setattr(foldings.FoldedWeights, "bias", lambda self, name: self.base.bias(name))
    outcome = export(base, saved(random_coefficients(base, "all"), tmp_path), tmp_path / "out")
    assert {"tensors", "fold"} <= {
        name for name, leg in outcome.parity["legs"].items() if leg and not leg["passed"]
    }


def damaged(package: Path, directory: Path, name: str, offset: int) -> Path:
    """A copy of the package in which one byte of a tensor was changed in its lowest bit."""
    copy = Path(shutil.copytree(package, directory / "copy"))
    tensor = Checkpoint(copy).stored(name)
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start + offset)
        byte = file.read(1)[0]
        file.seek(tensor.start + offset)
        file.write(bytes([byte ^ 1]))
    return copy


@pytest.mark.parametrize(
    "name", ["model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight"]
)
def test_a_changed_bit_in_an_untouched_tensor_fails(base_in: Any, package: Path, tmp_path: Path, name: str):
    copy = damaged(package, tmp_path, name, 100)
    assert failed(base_in(), package) == []
    assert failed(base_in(), copy) == ["tensors"]
    with pytest.raises(UserError, match="is damaged"):
        verify(copy, selftest_only=True)


def test_a_folded_weight_one_unit_off_fails(base_in: Any, package: Path, tmp_path: Path):
    copy = damaged(package, tmp_path, "model.language_model.layers.2.self_attn.o_proj.weight", 200)
    assert failed(base_in(), copy) == ["tensors"]


def test_a_weight_that_is_no_number_fails_where_no_model_runs(base_in: Any, tmp_path: Path):
    directory = Path(shutil.copytree(base_in().directory, tmp_path / "base"))
    base = open_base(str(directory))
    embedding = base.checkpoint.stored("model.language_model.embed_tokens.weight")
    with embedding.file.open("r+b") as file:
        file.seek(embedding.start + 100)
        file.write(b"\xc0\x7f")  # bfloat16's NaN
    coefficients = saved(random_coefficients(base, "all"), tmp_path)
    outcome = export(base, coefficients, tmp_path / "folded", parity="files")
    assert outcome.report.failed == ["tensors"]
    assert outcome.parity["legs"]["tensors"]["not_finite"] == [
        base.checkpoint.resolve("model.language_model.embed_tokens.weight")
    ]


def test_a_missing_shard_fails(base_in: Any, package: Path, tmp_path: Path):
    from scale_export.proof.stored_tensors import tensors_leg

    base, copy = base_in(), Path(shutil.copytree(package, tmp_path / "copy"))
    (copy / base.checkpoint.weight_files()[1].name).unlink()
    folded = foldings.fold(base.weights, random_coefficients(base, "all"), "weights")
    leg = tensors_leg(folded, base.weights, copy)
    assert leg.passed is False and leg.to_json()["value"] is None and leg.layout_identical is False


def test_naive_folding_of_last_token_scalars_would_fail(base_in: Any, tmp_path: Path):
    """The plan refuses it; were it not for that, the legs would."""
    base = base_in()
    plan = replace(plan_of(base), coefficients=random_coefficients(base, "last"))
    folded = foldings.fold(base.weights, plan.coefficients, "weights")
    names = backend.write(emission_of(plan, folded), tmp_path)
    graphs = {"checkpoint": tmp_path / names["checkpoint"]}
    measurement = measurement_of(plan)(
        plan=plan, weights=weights_of(plan), directory=tmp_path, graphs=graphs, log=WorkLog(quiet=True)
    )
    assert {"fold", "storage"} <= set(measurement.run(None, None).report.failed)
