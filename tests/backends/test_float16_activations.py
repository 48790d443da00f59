"""int4 and int8 weights in ONNX graphs that compute in float16, and what their lowering leg catches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from scale_export import open_package, verify
from scale_export.backends.onnxruntime import decoder as GRAPH
from scale_export.backends.onnxruntime.backend import BACKEND
from scale_export.backends.onnxruntime.kernels import OnnxKernels
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.core.compare import relative_error
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.words import Precision
from scale_export.device.engine import Step
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.onnxruntime.host import read_runtime_config
from scale_export.model import decoder as PORTABLE
from scale_export.model.decoder import Gate
from scale_export.model.folding import fold
from scale_export.package.manifest import open_package_files
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.shipped_values import as_stored
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import TOKENS, emission_of, generator, prompt, reference, stored
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.reports import report_of

TINY = Path(__file__).parents[2] / "examples/tiny_vlm"
HALF = LOWERING_RELATIVE["float16"]
PUBLISHED = {"llama": "llama", "qwen2": "qwen2", "mistral": "mistral-window"}
"""The text model of a family's published checkpoints → a variant."""


def halved(base: Any, directory: Path, precision: Precision) -> tuple[Any, Any, dict[str, Path]]:
    """Plan, quantized decoder and graphs (role → file) for a web page."""
    options = ExportOptions(precision=precision, activations="float16", quantizer="rtn", calib="none")
    plan = make_plan(random_coefficients(base), base, load_target("web"), options)
    decoder = stored(plan)
    names = BACKEND.emit(emission_of(plan, decoder), directory)
    return plan, decoder, {role: directory / name for role, name in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_picture(base_of: Any, tmp_path: Path, family: str):
    """Against the portable decoder in float32 on the values that the graphs hold."""
    recipe = FAMILIES[family]
    base = base_of(family, "own" if recipe.own_text else PUBLISHED[recipe.text])
    plan, decoder, graphs = halved(base, tmp_path, "int4")
    engine = OnnxEngine(
        graphs, context_length=plan.context_length, providers=["CPUExecutionProvider"], strict=True
    )
    inputs = prompt(base)
    expected = reference(plan, as_stored(decoder, "float16")).forced_logits(inputs, TOKENS)
    found = generator(engine, base, plan.fold).forced_logits(inputs, TOKENS)
    error = relative_error(expected, found)
    assert LOWERING_RELATIVE["float32"] < error <= HALF, error


def test_the_lowering_leg_says_which_limit_it_holds(base_of: Any, tmp_path: Path):
    leg = report_of(base_of("llava", "llama"), tmp_path, "cpu", "int8", activations="float16").lowering
    assert leg is not None and leg.passed, leg and leg.to_json()
    tower, embedded = leg.front
    assert leg.to_json() | {"precision": "float16", "limit": HALF, "weights": "dequantized"} == leg.to_json()
    assert tower.limit == LOWERING_RELATIVE["float32"] and embedded.limit == HALF
    assert {error.limit for error in leg.context} == {HALF}


@pytest.mark.slow
def test_a_package_says_so_and_runs(tmp_path: Path):
    base, out = opened_once(TINY / "model"), tmp_path / "package"
    asked = {"precision": "int4", "activations": "float16", "evaluation": "none"}
    made = fold_on(base, TINY / "spatial.pt", "web", out=out, **asked)
    assert made.passed and made.parity["legs"]["lowering"]["limit"] == HALF
    facts, manifest = read_runtime_config(out / "runtime.json"), open_package_files(out).manifest
    assert facts.activations == facts.kv.dtype == "float16"
    assert manifest.decoder.activation_dtype == manifest.decoder.kv_dtype == "float16"
    graph = onnx.load(out / "decoder.onnx", load_external_data=False).graph
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    caches = {name: kind for name, kind in types.items() if name.startswith(("past", "present"))}
    assert types["inputs_embeds"] == half and {*caches.values()} == {half}
    assert {types[name] for name in ("logits", "gate", "attn_scale", "mlp_scale")} == {single}
    package = open_package(out, threads=1)
    logits = []
    for package.scale in (1, 0.5, 0):
        logits.append(package.logits([TINY / "scene.png"], "what is left of the moon ?", TOKENS))
    assert min(relative_error(logits[0], logits[1]), relative_error(logits[1], logits[2])) > 10 * HALF
    assert verify(out, model=str(base.directory), evaluation="none").passed


def test_the_reference_computes_in_float32_whatever_embeds(base_of: Any):
    """A package's own embeddings are float16: rounding after them in the reference would excuse the graph's."""
    base = base_of("llava", "llama")
    plan = make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions(precision="float32"))
    engine = reference(plan, fold(base.weights, plan.coefficients, "gate")).engine
    halves = np.random.default_rng(3).standard_normal((1, 5, engine.hidden_size)).astype(np.float16)
    logits = []
    for embeds in (halves, halves.astype(np.float32)):
        step = Step(inputs_embeds=embeds, lengths=np.array([5]), position_ids=np.arange(5)[None])
        logits.append(engine.forward(engine.new_cache(1), step, None, "base"))
    np.testing.assert_array_equal(*logits)


def a_scalar_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head of one layer, where the graph's gate is made."""

    def gate(*, attn_scale: Tensor, **rest: Any) -> Gate:
        first = torch.cat((torch.ones(1, 1), attn_scale[:1, 1:]), dim=1)
        return Gate(attn_scale=torch.cat((first, attn_scale[1:])), **rest)

    monkeypatch.setattr(GRAPH, "Gate", gate)


def at_most(x: Tensor, limit: float) -> Tensor:
    return torch.minimum(x, torch.ones((), dtype=x.dtype) * limit)


def a_clipped_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors above 1 become 1 as they are cast to float16."""
    made = PORTABLE.gate_factors

    def clipped(gate: Gate, gated: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        factors = made(gate, gated, x)
        if x.dtype != torch.float16:
            return factors
        return tuple(tuple(at_most(factor, 1.0) for factor in part) for part in factors)

    monkeypatch.setattr(PORTABLE, "gate_factors", clipped)


def clipped_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into products, as if cast through a type of a smaller reach."""
    linear = OnnxKernels.linear
    monkeypatch.setattr(OnnxKernels, "linear", lambda self, name, x: linear(self, name, at_most(x, 2.5)))


@pytest.mark.parametrize("broken", [a_scalar_dropped, a_clipped_gate, clipped_activations])
def test_what_float16_does_not_excuse(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any
):
    broken(monkeypatch)
    with traced_anew():
        report = report_of(base_of("llava", "llama"), tmp_path, "web", "int4", activations="float16")
    assert "lowering" in report.failed and report.fold is not None and report.fold.passed
    assert report.lowering is not None and np.isfinite(report.lowering.error.value)
