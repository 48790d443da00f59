"""Graphs for a Jetson's CUDA provider, proved on this machine's processor."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from torch import Tensor

from scale_export import UserError, open_package
from scale_export.backends.onnxruntime.backend import BACKEND, CUDA
from scale_export.backends.onnxruntime.kernels import OnnxKernels
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.core.compare import relative_error
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.device.certificate import own_result
from scale_export.device.onnxruntime.engine import OnnxEngine, usable_providers
from scale_export.device.selftest import run_selftest
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from scale_export.proof.shipped_values import Grafted, as_stored
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import TOKENS, emission_of, generator, prompt, reference, stored
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.reports import report_of

EXAMPLES = Path(__file__).parents[2] / "examples"
HALF = LOWERING_RELATIVE["float16"]
PUBLISHED = {"llama": "llama", "qwen2": "qwen2", "mistral": "mistral-window"}
"""The text model of a family's published checkpoints → a variant."""
REFUSED = ("gemma3", "paligemma")
SEVERAL_AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

pytestmark = pytest.mark.skipif(
    CUDA in ort.get_available_providers(), reason="these tests are of a machine without CUDA"
)


def planned(base_of: Any, family: str) -> Plan:
    recipe = FAMILIES[family]
    base = base_of(family, "own" if recipe.own_text else PUBLISHED[recipe.text])
    options = ExportOptions(quantizer="rtn", calib="none", fold="gate")
    plan = make_plan(random_coefficients(base), base, load_target("jetson"), options)
    BACKEND.check(plan)
    return plan


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def build(family: str) -> Any:
        plan, directory = planned(base_of, family), tmp_path_factory.mktemp(family)
        decoder = stored(plan)
        names = BACKEND.emit(emission_of(plan, decoder), directory)
        return plan, decoder, {role: directory / name for role, name in names.items()}

    return build


def test_what_the_device_can_run(emitted: Any):
    plan, _, graphs = emitted("llava")
    assert (plan.precision, plan.block_size, plan.vision_precision) == ("int4", 32, "float16")
    assert plan.float_types == ("float16", "float16")
    for role in ("decoder", "vision", "embedding"):
        model = onnx.load(graphs[role], load_external_data=False)
        assert {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")} <= {
            *range(23)
        }
    graph = onnx.load(graphs["decoder"], load_external_data=False).graph
    assert "position_ids" not in {value.name for value in graph.input}
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert attention and {len(node.input) for node in attention} == {9}, "neither positions nor bias"
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    levels = {a.i for node in products for a in node.attribute if a.name == "accuracy_level"}
    assert products and levels == {0}


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_every_family_that_is_not_refused(emitted: Any, family: str):
    """On this machine's processor, against the portable decoder in float32 on the values that the graphs hold."""
    plan, decoder, graphs = emitted(family)
    inputs = prompt(plan.base)
    engine = OnnxEngine(graphs, context_length=512, providers=plan.target.execution_providers or ())
    oracle = reference(plan, as_stored(decoder, "float16"))
    tower = plan.base.family.tower_inputs(inputs, oracle.runtime_config)
    features = [one.vision(tower)["image_features"] for one in (oracle.engine, engine)]
    assert relative_error(*features) <= HALF
    grafted = Grafted(
        front=engine, decoder=oracle.engine
    )  # behind the same float16 tower, as the lowering leg has it
    expected = generator(grafted, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    found = generator(engine, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= HALF
    graph = onnx.load(graphs["decoder"], load_external_data=False).graph
    takes_positions = "position_ids" in {value.name for value in graph.input}
    assert takes_positions == (family in SEVERAL_AXES), (
        "turned apart from attention, by positions of several axes"
    )


@pytest.mark.parametrize("family", REFUSED)
def test_what_cuda_has_no_attention_for_is_refused(base_of: Any, family: str):
    with pytest.raises(
        UserError, match=f"can't run {family}, .* attention_bias, .*; choose target cpu$"
    ) as caught:
        planned(base_of, family)
    assert "\n" not in str(caught.value)


def test_the_report_says_what_ran(base_of: Any, tmp_path: Path):
    report = report_of(base_of("llava", "llama"), tmp_path, "jetson", "int8")
    assert report.executed_by.endswith(", CPUExecutionProvider")
    said = " ".join(map(str, report.not_checked))
    assert f"device: ONNX Runtime here has no {CUDA}, so that the CPU ran the graphs" in said
    leg = report.lowering
    assert leg is not None and leg.passed and len(leg.context) == 2, leg and leg.to_json()


def test_positions_that_are_counted_wrongly(base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A graph that says that a row holds one token more than it does."""
    begin = OnnxKernels.begin

    def shifted(self: OnnxKernels, *given: Tensor | None) -> Any:
        inputs = begin(self, *given)
        object.__setattr__(inputs, "past_lengths", inputs.past_lengths - 1)
        return inputs

    monkeypatch.setattr(OnnxKernels, "begin", shifted)
    with traced_anew():
        report = report_of(base_of("llava", "llama"), tmp_path, "jetson", "int8")
    assert "lowering" in report.failed


def test_a_provider_that_is_missing_falls_to_the_cpu_only_where_that_is_wanted():
    assert usable_providers([CUDA, "CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    with pytest.raises(UserError, match=f"ONNX Runtime here has no {CUDA}; it has .*: install a build"):
        usable_providers([CUDA])


@pytest.mark.slow
@pytest.mark.parametrize("example", ["tiny_vlm", "small_vlm"])
def test_both_shipped_models_keep_their_gain(tmp_path: Path, example: str):
    home = EXAMPLES / example
    made = fold_on(
        opened_once(home / "model"), home / "spatial.pt", "jetson", out=tmp_path / "jetson", eval_limit=256
    )
    legs = made.parity["legs"]
    assert made.passed and legs["lowering"]["value"] <= legs["lowering"]["limit"] == HALF, made.parity
    assert legs["task"]["gain_retention"] >= 0.9
    package = open_package(tmp_path / "jetson", threads=1)
    result = own_result(package, run_selftest(package))
    assert result.host.provider == "cpu", "what ran, not what the package is for"
    assert np.isfinite([case.error for case in result.cases]).all()
