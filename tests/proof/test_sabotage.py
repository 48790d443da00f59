"""Prove by breaking: each way to get ScAle wrong makes the parity report fail, in the leg that guards it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.backends.onnxruntime.backend import OnnxRuntime
from scale_export.backends.processor import copy_processor
from scale_export.core.progress import WorkLog
from scale_export.device import generation
from scale_export.device.onnxruntime.host import read_runtime_config, write_runtime_config
from scale_export.families.llava import Llava
from scale_export.model import decoder, folding
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof import measure
from scale_export.proof.candidate import GraphCandidate
from scale_export.proof.legs import largest_error
from scale_export.proof.measure import Measurement
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import emission_of, stored, weights_of
from tests.helpers.sabotage import drop_layer, swap_heads

Emit = Callable[..., Measurement]


@pytest.fixture(scope="module")
def measurement(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    """``measurement(mode, scope, precision)``: a healthy export, ready to be measured."""
    cache: dict[tuple[Any, ...], Measurement] = {}

    def build(mode: str = "gate", scope: Any = "last", precision: str = "float32") -> Measurement:
        key = (mode, scope, precision)
        if key not in cache:
            base = base_of("llava", "llama-biased")
            options = ExportOptions(fold=mode, precision=precision)
            plan = make_plan(random_coefficients(base, scope), base, load_target("cpu"), options)
            directory = tmp_path_factory.mktemp("export")
            names = backend.emit(emission_of(plan, stored(plan), vision_precision="float32"), directory)
            copy_processor(base, directory)
            graphs = {role: directory / name for role, name in names.items()}
            cache[key] = Measurement(
                plan=plan,
                weights=weights_of(plan),
                directory=directory,
                graphs=graphs,
                log=WorkLog(quiet=True),
            )
        return cache[key]

    return build


def failed_legs(broken: Measurement, step: str | None = None) -> list[str]:
    """The legs that fail; ``step`` is the one that the attribution must blame for nearly all of the loss."""
    report = broken.run(None, None).report
    if step is not None:
        assert report.attribution is not None and report.attribution.passed is True
        parts = {name: part.kl for name, part in report.attribution.parts.items()}
        assert parts[step] > 0.9 * sum(map(abs, parts.values())), parts
    return report.failed


@pytest.mark.parametrize(
    ("mode", "scope", "precision"),
    [
        ("gate", "last", "float32"),
        ("two-phase", "last", "float32"),
        ("weights", "all", "float32"),
        ("gate", "last", "int8"),
    ],
)
def test_a_healthy_export_passes(measurement: Emit, mode: str, scope: str, precision: str):
    measured = measurement(mode, scope, precision).run(None, None)
    assert measured.report.passed, measured.report.to_json()
    assert measured.report.fold and measured.report.lowering
    assert (measured.report.quantization is None) == (precision == "float32")
    if precision == "float32":
        assert measured.report.answer_agreement.outside_near_ties == 1
    assert "task" in {missing.subject for missing in measured.report.not_checked}


def test_naive_folding_of_last_token_scalars(measurement: Emit):
    healthy = measurement()
    plan = replace(healthy.plan, fold="weights")
    naive = replace(healthy, plan=plan, weights=weights_of(plan))
    report = naive.run(None, None).report
    assert "fold" in report.failed
    # The graphs are the healthy ones: what the fold lost, the lowering seems to bring back, and the whole is nothing.
    assert report.attribution is not None and report.attribution.passed is True
    fold_part, lowering_part = (report.attribution.parts[name].kl for name in ("fold", "lowering"))
    assert fold_part > 1e-3 and fold_part == pytest.approx(-lowering_part)


def copy_decoder(healthy: Measurement, directory: Path) -> None:
    for name in ("decoder.onnx", "decoder.onnx.data"):
        shutil.copy(healthy.directory / name, directory / name)


@pytest.mark.parametrize("broken", [swap_heads, drop_layer])
def test_wrong_scalars_in_the_fold(measurement: Emit, monkeypatch: pytest.MonkeyPatch, broken: Any):
    healthy = measurement()
    dense = folding.FoldedDecoder.dense
    monkeypatch.setattr(folding.FoldedDecoder, "dense", lambda self: broken(*dense(self)))
    assert "fold" in failed_legs(healthy)


@pytest.mark.parametrize("broken", [swap_heads, drop_layer])
def test_wrong_scalars_for_the_graphs(measurement: Emit, tmp_path: Path, broken: Any):
    healthy = measurement()
    config, path = read_runtime_config(healthy.graphs["runtime"]), tmp_path / "runtime.json"
    attn, mlp = (values.tolist() for values in broken(*config.trained()))
    scalars = config.scalars.model_copy(update={"attn_scale": attn, "mlp_scale": mlp})
    write_runtime_config(config.model_copy(update={"scalars": scalars}), path)
    assert "lowering" in failed_legs(replace(healthy, graphs={**healthy.graphs, "runtime": path}), "lowering")


def test_a_gate_that_the_graph_drops(measurement: Emit, tmp_path: Path):
    """As a runtime that ignores the gate would answer: the base model's answers."""
    healthy = measurement()
    path = tmp_path / "decoder.onnx"
    copy_decoder(healthy, tmp_path)
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.input[:] = [
            "gate.none" if name == "gate" and node.op_type == "Unsqueeze" else name for name in node.input
        ]
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["gate", "gate"], ["gate.none"]))
    onnx.save(model, path)
    assert "lowering" in failed_legs(replace(healthy, graphs={**healthy.graphs, "decoder": path}), "lowering")


def test_scalars_on_the_prefix_only(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    factors = decoder.gate_factors

    def inverted(gate: Any, position: Any, x: Any) -> Any:
        everywhere = factors(replace(gate, scope="all"), position, x)
        last = factors(gate, position, x)
        return tuple(
            tuple(every - one + 1 for every, one in zip(*pair, strict=True))
            for pair in zip(everywhere, last, strict=True)
        )

    healthy = measurement()
    monkeypatch.setattr(decoder, "gate_factors", inverted)
    assert "fold" in failed_legs(healthy)


def test_base_weights_over_the_whole_prompt_then_folded_decode(
    measurement: Emit, monkeypatch: pytest.MonkeyPatch
):
    healthy = measurement("two-phase")

    def prefill(self: Any, inputs: Any) -> Any:
        prompt, cache = self.embed_prompt(inputs), self.engine.new_cache(1)
        logits = self.forward(cache, prompt.step(slice(None), gated=False))
        return generation.Prefilled(cache=cache, logits=logits, next_position=prompt.next_position)

    monkeypatch.setattr(generation.Generator, "prefill", prefill)
    assert "fold" in failed_legs(healthy)


def test_the_mlp_bias_left_unscaled(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement("weights", "all")
    monkeypatch.setattr(folding.FoldedWeights, "bias", lambda self, name: self.base.bias(name))
    assert "fold" in failed_legs(healthy)


def test_rotary_positions_off_by_one(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement()
    decode = generation.Generator.decode
    monkeypatch.setattr(
        generation.Generator,
        "decode",
        lambda self, cache, token, position: decode(self, cache, token, position + 1),
    )
    assert "fold" in failed_legs(healthy)


def test_an_image_flipped_before_the_tower(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement()
    monkeypatch.setattr(Llava, "tiles", lambda self, inputs: inputs["pixel_values"][..., ::-1])
    assert "fold" in failed_legs(healthy)


def test_an_image_flipped_by_the_packages_processor(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement()
    encode = measure.encode_messages

    def flipped(processor: Any, messages: Any) -> Any:
        inputs = encode(processor, messages)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"][..., ::-1]
        return inputs

    monkeypatch.setattr(measure, "encode_messages", flipped)
    assert failed_legs(healthy, "preprocessing") == ["preprocessing"]


def test_a_prompt_template_that_was_changed(measurement: Emit, tmp_path: Path):
    healthy = measurement()
    for path in healthy.directory.iterdir():
        if path.suffix in (".json", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert "preprocessing" in failed_legs(replace(healthy, directory=tmp_path))


def test_a_head_whose_block_scales_were_lost(measurement: Emit, tmp_path: Path):
    """Within a quantized graph: the lowering leg holds the package's own tensors to the values that the plan made."""
    healthy = measurement("gate", "last", "int8")
    path = tmp_path / "decoder.onnx"
    copy_decoder(healthy, tmp_path)
    model = ir.load(path)
    scales = model.graph.initializers["layers.0.o_proj.scales"]
    array = scales.const_value.numpy().copy()
    array[:, 0] = 0
    scales.const_value = ir.tensor(array, name=scales.name)
    ir.save(model, path)
    broken = replace(healthy, graphs={**healthy.graphs, "decoder": path})
    assert "lowering" in failed_legs(broken, "lowering")


def test_kernels_that_compute_something_else(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement("gate", "last", "int8")
    logits = GraphCandidate.logits

    def skewed(self: Any, cases: Any) -> Any:
        return [np.ascontiguousarray(rows[:, ::-1]) for rows in logits(self, cases)]

    monkeypatch.setattr(GraphCandidate, "logits", skewed)
    assert failed_legs(healthy, "runtime") == ["runtime"]


def test_integer_codes_that_moved(measurement: Emit, monkeypatch: pytest.MonkeyPatch):
    healthy = measurement("weights", "all", "int8")
    monkeypatch.setattr(measure, "graph_backend", lambda name: MovedCodes())
    leg = healthy.run(None, None).report.quantization
    assert leg is not None and leg.codes_identical is False and leg.passed is False
    stored: Any = leg.to_json()
    assert len(stored["codes_sha256"]) == stored["folded_matrices"] == len(leg.codes) > 0
    assert stored["codes_identical"] is False and stored["passed"] is False


class MovedCodes(OnnxRuntime):
    def code_hashes(self, graphs: Any, names: Any) -> Any:
        hashes = dict(super().code_hashes(graphs, names))
        hashes[names[0]] = "0" * 64
        return hashes


def test_logits_that_are_not_finite_fail_and_are_written_as_null():
    found = largest_error([np.ones((1, 3), np.float32)], [np.array([[1, np.nan, 1]], np.float32)], 1.0)
    assert found.passed is False and found.to_json()["value"] is None
