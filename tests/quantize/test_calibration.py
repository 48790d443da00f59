"""Calibration: the moments of the deployed function, kept by content, and what they are worth."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from scale_export import UserError, verify
from scale_export.coefficients.file import Coefficients, load_coefficients
from scale_export.core.progress import WorkLog
from scale_export.model.base import open_base
from scale_export.model.hooks import attach
from scale_export.package.manifest import open_package_files
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof import measure
from scale_export.proof.measure import Measurement
from scale_export.proof.report import ParityReport
from scale_export.quantize import CalibrationOptions, QuantizedWeights, calibration, load_quantizer
from scale_export.quantize.calibration import _token_weights, calibrate
from scale_export.quantize.stored import RECORD_SCHEMA, write_whole
from scale_export.questions import load_questions
from scale_export.training.examples import encode_examples, whole_sequences
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import stored, weights_of
from tests.helpers.folds import fold_on
from tests.helpers.trees import tree

OPTIONS = CalibrationOptions(source="gridworld", limit=4)
EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"
QUIET = WorkLog(quiet=True)


def hooked_inputs(base: Any, coefficients: Coefficients, name: str, *, answers_only: bool = False) -> Any:
    """One module's inputs ``[tokens, in]`` in the hooked Hugging Face model, over every token of the same questions."""
    questions = load_questions("gridworld", "calibration", limit=OPTIONS.limit)
    examples = encode_examples(base.model, base.processor, questions, lambda *_: None, "")
    found: list[torch.Tensor] = []
    module = base.model.get_submodule(name)
    with attach(base.model, coefficients) as handle:
        # Registered after ScAle's own hooks: what it sees is scaled.
        hook = module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
        try:
            for example in examples:
                batch = whole_sequences([example], 0)
                handle.gate_mask = batch.gate
                base.model(**batch.inputs)
                if answers_only:
                    found[-1] = found[-1][batch.gate > 0]
        finally:
            hook.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in found]).double().numpy()


def hooked_moments(base: Any, coefficients: Coefficients, name: str, *, answers_only: bool = False) -> Any:
    """E[x xᵀ] of the same."""
    rows = hooked_inputs(base, coefficients, name, answers_only=answers_only)
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("scope", ["last", "all"])
@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_moments_are_those_of_the_hooked_model(base_of: Any, tmp_path: Path, family: str, scope: Any):
    base = base_of(family, "llama")
    coefficients = random_coefficients(base, scope)
    found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    prefix = base.family.text_prefix
    for layer, part in (
        (0, "self_attn.v_proj"),
        (1, "self_attn.o_proj"),
        (2, "mlp.up_proj"),
        (2, "mlp.down_proj"),
    ):
        expected = hooked_moments(base, coefficients, f"{prefix}.layers.{layer}.{part}")
        moments = found.moments(f"layers.{layer}.{part.partition('.')[2]}")
        assert moments is not None
        np.testing.assert_allclose(moments.matrix, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(moments.matrix, moments.matrix.T)
        peaks = found.peaks(f"layers.{layer}.{part.partition('.')[2]}")
        seen = hooked_inputs(base, coefficients, f"{prefix}.layers.{layer}.{part}")
        np.testing.assert_allclose(peaks, np.abs(seen).max(axis=0), rtol=2e-4, atol=2e-5 * np.abs(seen).max())
    expected = hooked_moments(base, coefficients, "lm_head", answers_only=True)
    moments = found.moments("lm_head")
    assert moments is not None
    np.testing.assert_allclose(moments.matrix, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())
    assert found.moments("embedding") is None and found.peaks("embedding") is None


def test_moments_are_of_the_scaled_model_not_of_the_base(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    name = f"{base.family.text_prefix}.layers.1.self_attn.o_proj"
    found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path).moments("layers.1.o_proj")
    ones = replace(
        coefficients,
        head_scale=tuple(np.ones_like(row) for row in coefficients.head_scale),
        mlp_scale=np.ones_like(coefficients.mlp_scale),
    )
    unscaled = hooked_moments(base, ones, name)
    assert found is not None
    assert np.abs(found.matrix - unscaled).max() > 1e-3 * np.abs(unscaled).max()


def test_a_stopped_run_goes_on_and_a_finished_one_is_not_repeated(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    whole, sha256 = {f.name: f.read_bytes() for f in found.directory.glob("*.safetensors")}, found.sha256
    assert set(whole) == {
        "layers.0.safetensors",
        "layers.1.safetensors",
        "layers.2.safetensors",
        "output.safetensors",
    }

    def stop(tensors: Any, file: Path) -> None:
        raise KeyboardInterrupt

    (found.directory / "layers.1.safetensors").unlink()
    (found.directory / "output.safetensors").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "write_whole", stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    written: list[str] = []
    honest = write_whole
    monkeypatch.setattr(
        calibration, "write_whole", lambda t, file: (written.append(file.name), honest(t, file))
    )
    again = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    assert again.sha256 == sha256
    assert {f.name: f.read_bytes() for f in again.directory.glob("*.safetensors")} == whole
    assert written == ["layers.1.safetensors", "layers.2.safetensors", "output.safetensors"]
    monkeypatch.setattr(calibration, "collect", stop)
    assert calibrate(base, coefficients, OPTIONS, QUIET, tmp_path).sha256 == sha256


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def invent(file: Path) -> None:
    """Whole and of the right shapes, and not what the model's inputs are."""
    rng = np.random.default_rng(0)
    save_file({name: rng.random(x.shape, np.float32) for name, x in load_file(file).items()}, file)


def invent_before(file: Path) -> None:
    """As a version without records would have left it."""
    invent(file)
    file.with_suffix(".json").unlink()


def age(file: Path) -> None:
    """Another schema's statistics, and a record that fits them."""
    beside = file.with_suffix(".json")
    beside.write_text(beside.read_text().replace(f'"schema": {RECORD_SCHEMA}', '"schema": 1'))


def garble_record(file: Path) -> None:
    file.with_suffix(".json").write_bytes(b"[" * 100_000)


def make_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DOUBTS = (cut, invent, invent_before, age, garble_record, make_a_pipe)


@pytest.mark.parametrize("damage", DOUBTS, ids=lambda damage: damage.__name__)
def test_a_file_in_doubt_is_collected_again(damage: Callable[[Path], None], base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    names = [name for name, _ in found.digests]
    whole = {name: (found.directory / name).read_bytes() for name in names}
    assert len(whole) == 4 and found.moments("layers.1.o_proj") is not None
    for name in names:
        damage(found.directory / name)
        again = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
        assert again == found and again.sha256 == found.sha256
        assert {name: (again.directory / name).read_bytes() for name in names} == whole


def lose(file: Path) -> None:
    """A site, with a record that fits what is left."""
    left = load_file(file)
    del left["layers.1.o_proj"]
    write_whole(left, file)


@pytest.mark.parametrize(
    ("damage", "words"), [(cut, "was changed while"), (make_a_pipe, "was changed while"), (lose, "lacks")]
)
def test_a_file_that_changed_after_it_was_checked_is_refused(
    damage: Callable[[Path], None], words: str, base_of: Any, tmp_path: Path
):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    damage(found.directory / "layers.1.safetensors")
    if damage is lose:  # and was checked again
        found = calibrate(base, coefficients, OPTIONS, QUIET, tmp_path)
    calibration._read.cache_clear()
    with pytest.raises(UserError, match=words):
        found.moments("layers.1.o_proj")


def test_a_cache_that_cannot_be_written_is_one_sentence(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    (tmp_path / "calibration").write_bytes(b"")
    with pytest.raises(UserError, match="--cache"):
        calibrate(base, random_coefficients(base), OPTIONS, QUIET, tmp_path)
    (tmp_path / "layers.0.safetensors").mkdir()
    with pytest.raises(UserError, match="--cache"):
        write_whole({"x": np.ones(3, np.float32)}, tmp_path / "layers.0.safetensors")


def test_all_that_decides_the_moments_names_their_entry(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    variants = [
        (coefficients, OPTIONS),
        (replace(coefficients, mlp_scale=coefficients.mlp_scale * np.float32(1.01)), OPTIONS),
        (replace(coefficients, scope="all"), OPTIONS),
        (coefficients, replace(OPTIONS, limit=3)),
        (coefficients, replace(OPTIONS, pictures=False)),
        (coefficients, replace(OPTIONS, weighting="last")),
        (coefficients, replace(OPTIONS, weighting="image")),
        (coefficients, replace(OPTIONS, source="gridworld:seed=1")),
    ]
    found = [calibrate(base, scalars, options, QUIET, tmp_path) for scalars, options in variants]
    assert len({f.directory for f in found}) == len({f.sha256 for f in found}) == len(variants)


def test_chosen_tokens_weigh_as_much_as_the_others():
    at_image = np.array([False, True, True, False, False, False])
    prompt, *answers = _token_weights("last", at_image, [6, 1])
    np.testing.assert_allclose(prompt, [1, 1, 1, 1, 1, 2.5])
    np.testing.assert_allclose(answers[0], [2.5])
    prompt, together = _token_weights("last", at_image, [6, 3])
    np.testing.assert_allclose(together, [1.25] * 3)
    np.testing.assert_allclose(prompt, [1, 1, 1, 1, 1, 1.25])
    np.testing.assert_allclose(_token_weights("image", at_image, [6, 1])[0], [1, 2.5, 2.5, 1, 1, 1])
    np.testing.assert_allclose(_token_weights("uniform", at_image, [6])[0], np.ones(6))
    np.testing.assert_allclose(_token_weights("image", np.zeros(3, np.bool_), [3])[0], np.ones(3))


def test_calibration_without_pictures_is_worse_on_questions_with_them(tmp_path: Path):
    """Sabotage: the shipped model's products after gptq, on other scenes than it was calibrated on."""
    base = open_base(str(EXAMPLE / "model"))
    coefficients = load_coefficients(EXAMPLE / "spatial.pt")
    options = replace(OPTIONS, limit=32)
    held_out = calibrate(base, coefficients, replace(options, source="gridworld:seed=1"), QUIET, tmp_path)

    def error(statistics: Any) -> float:
        total = 0.0
        for name in (
            f"layers.{layer}.{part}" for layer in range(4) for part in ("v_proj", "up_proj", "down_proj")
        ):
            weight, inputs = base.weights.matrix(name).numpy(), held_out.moments(name)
            assert inputs is not None
            block = load_quantizer("gptq").quantize(weight, 4, 32, statistics.moments(name))
            rounding = block.dequantize() - weight
            scale = np.einsum("oi,oi->", weight @ inputs.matrix, weight)
            total += float(np.einsum("oi,oi->", rounding @ inputs.matrix, rounding) / scale)
        return total

    seen = calibrate(base, coefficients, options, QUIET, tmp_path)
    blind = calibrate(base, coefficients, replace(options, pictures=False), QUIET, tmp_path)
    assert error(blind) > 1.5 * error(seen)


def plan_of(base: Any, training: dict[str, Any] | None = None, **options: Any) -> Any:
    coefficients = replace(random_coefficients(base), training=training or {})
    return make_plan(coefficients, base, load_target("cpu"), ExportOptions(**options))


@pytest.mark.parametrize(
    ("training", "options", "quantizer", "calibrated"),
    [
        ({"data": "gridworld"}, {"precision": "int4"}, "gptq", True),
        ({"data": "gridworld"}, {"precision": "int4", "calib": "none"}, "rtn", False),
        ({"data": "mine"}, {"precision": "int4"}, "gptq", True),
        ({}, {"precision": "int4"}, "gptq", True),
        ({}, {"precision": "int4", "calib": "self:8,seed=3"}, "gptq", True),
        ({"data": "mine"}, {"precision": "int4", "calib": "gridworld"}, "gptq", True),
        ({"data": "gridworld"}, {"precision": "int8"}, "rtn", False),
        ({"data": "gridworld"}, {"precision": "int8", "quantizer": "mse"}, "mse", True),
        ({"data": "gridworld"}, {"precision": "float32"}, None, False),
        ({"data": "gridworld"}, {"precision": "w8a8"}, "smoothquant", True),
        ({}, {"precision": "w8a8"}, "smoothquant", True),
        ({"data": "gridworld"}, {"precision": "w8a8", "quantizer": "rtn"}, "rtn", True),
    ],
)
def test_the_plan_chooses_a_quantizer_and_says_why(
    base_of: Any, training: Any, options: Any, quantizer: str | None, calibrated: bool
):
    plan = plan_of(base_of("llava", "llama"), training, **options)
    assert plan.quantizer == quantizer and (plan.calibration is not None) == calibrated
    assert any(f"quantizer is {quantizer}" in said for said in plan.decisions) == (quantizer is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4", "quantizer": "gptq", "calib": "none"}, ("needs calibration", "--calib none")),
        (
            {"precision": "int4", "quantizer": "awq", "calib": "none"},
            ("needs calibration", "--quantizer rtn"),
        ),
        ({"precision": "int4", "quantizer": "gtpq"}, ("did you mean 'gptq'",)),
        ({"precision": "float32", "quantizer": "gptq"}, ("int8 and int4", "--precision")),
        (
            {"precision": "w8a8", "calib": "none", "quantizer": "rtn"},
            ("question set", "--calib", "--precision int8"),
        ),
        (
            {"precision": "w8a8", "calib": "gridworld", "quantizer": "gptq"},
            ("searches blocks", "rtn or smoothquant"),
        ),
        (
            {"precision": "int8", "calib": "gridworld", "quantizer": "smoothquant"},
            ("int8 rounds weights alone", "awq"),
        ),
        (
            {"precision": "w8a8", "calib": "gridworld", "block_size": 32},
            ("output channel", "leave --block-size"),
        ),
        (
            {"precision": "w8a8", "calib": "gridworld", "bits": {"lm_head": 4}},
            ("int8 or int4", "--precision"),
        ),
        ({"precision": "int4", "calib": "gridwrold"}, ("did you mean 'gridworld'",)),
        ({"precision": "int4", "calib": "gridworld", "calib_weighting": "lats"}, ("did you mean 'last'",)),
    ],
)
def test_refusals_say_the_way_out(base_of: Any, options: Any, words: tuple[str, ...]):
    with pytest.raises(UserError) as refusal:
        plan_of(base_of("llava", "llama"), **options)
    said = str(refusal.value)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.slow
def test_a_calibrated_package_reproduces_and_verifies(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    coeffs = saved(random_coefficients(base, "all"), tmp_path)
    for run in ("first", "second"):
        outcome = fold_on(
            base,
            coeffs,
            "cpu",
            out=tmp_path / run / "package",
            precision="int8",
            quantizer="awq",
            calib="gridworld",
            calib_limit=4,
            cache=tmp_path / run / "cache",
            evaluation="none",
        )
        assert outcome.passed and outcome.parity["legs"]["quantization"]["codes_identical"] is True
    first, second = (tree(tmp_path / run / "package") for run in ("first", "second"))
    assert first == second
    facts = open_package_files(tmp_path / "first/package").manifest.calibration
    assert facts is not None and facts.questions == "gridworld" and facts.limit == 4
    again = {"model": str(base.directory), "evaluation": "none", "cache": tmp_path / "first/cache"}
    found = verify(tmp_path / "first/package", **again)  # type: ignore[arg-type]
    assert found.parity is not None and found.parity["legs"]["quantization"]["codes_identical"] is True


def codes_kept(
    base: Any, cache: Path, statistics_sha256: str | None, **calibration: Any
) -> tuple[Any, list[str]]:
    """What the quantization leg is told of a package whose codes are gptq's on 4 questions."""
    coefficients = random_coefficients(base, "all")
    options = ExportOptions(
        precision="int8", quantizer="gptq", calib="gridworld", calib_limit=4, cache=cache, fold="weights"
    )
    plan = make_plan(coefficients, base, load_target("cpu"), options)
    made = stored(plan).weights
    assert isinstance(made, QuantizedWeights)
    other = replace(plan, calibration=replace(plan.calibration or OPTIONS, **calibration))
    measurement = Measurement(
        plan=other,
        weights=weights_of(other),
        directory=cache,
        graphs={},
        log=QUIET,
        statistics_sha256=statistics_sha256,
    )
    report = ParityReport(executed_by="")
    hashes = SimpleNamespace(code_hashes=lambda _, names: {n: made.block(n).codes_sha256 for n in names})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "graph_backend", lambda _: hashes)
        return measurement.codes_kept(report), [str(missing) for missing in report.not_checked]


def test_codes_are_compared_with_those_of_the_same_calibration_or_not_at_all(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    kept, said = codes_kept(base, tmp_path, None)
    assert kept and all(base == packaged for base, packaged in kept.values()) and not said
    other, said = codes_kept(base, tmp_path, None, pictures=False)
    assert other and any(base != packaged for base, packaged in other.values()) and not said
    unknown, said = codes_kept(base, tmp_path, "0" * 64)
    assert unknown == {} and "not those of the export" in said[0]
