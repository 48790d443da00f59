"""Prove by breaking: what a host of a Core ML package can get wrong makes the lowering leg fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.backends.coreml.backend import BACKEND as backend
from scale_export.backends.processor import copy_processor
from scale_export.coefficients.file import load_coefficients
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.progress import WorkLog
from scale_export.device.coreml import engine
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.engine import Step
from scale_export.model.base import open_base
from scale_export.model.folding import fold as fold_decoder
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.measure import Measurement
from tests.helpers.emission import Emit, emission_of, emitting, reference, weights_of

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"
STRICT = limits.LOWERING_RELATIVE["float32"]


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("coreml", backend, base_of, tmp_path_factory)


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """A healthy float16 export of the shipped model, ready to be measured."""
    coefficients = load_coefficients(EXAMPLE / "spatial.pt")
    base = open_base(str(EXAMPLE / "model"))
    plan = make_plan(coefficients, base, load_target("coreml"), ExportOptions(precision="float16"))
    directory = tmp_path_factory.mktemp("export")
    names = backend.emit(
        emission_of(
            plan,
            fold_decoder(base.weights, coefficients, plan.fold),
            precision="float16",
            vision_precision="float16",
        ),
        directory,
    )
    copy_processor(base, directory)
    graphs = {role: directory / name for role, name in names.items()}
    healthy = Measurement(
        plan=plan, weights=weights_of(plan), directory=directory, graphs=graphs, log=WorkLog(quiet=True)
    )
    report = healthy.run(None, None).report
    assert report.passed, report.to_json()
    return healthy


def swap_heads(config: Any) -> None:
    rows = config["scalars"]["attn_scale"]
    rows[0] = [rows[0][1], rows[0][0], *rows[0][2:]]


def drop_layer(config: Any) -> None:
    config["scalars"]["attn_scale"][1] = [1.0] * len(config["scalars"]["attn_scale"][1])
    config["scalars"]["mlp_scale"][1] = 1.0


@pytest.mark.parametrize("broken", [swap_heads, drop_layer])
def test_wrong_scalars_beside_the_decoder_fail_the_lowering_leg(
    measurement: Measurement, tmp_path: Path, broken: Any
):
    config = json.loads(measurement.graphs["runtime"].read_text())
    broken(config)
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(config))
    report = replace(measurement, graphs={**measurement.graphs, "runtime": path}).run(None, None).report
    assert "lowering" in report.failed


def shifted_positions(rotary: Any, positions: Any) -> Any:
    return TURNS(rotary, positions + (positions > 9))


def ungated(self: CoreMLEngine, scalars: Any, gated: bool) -> Any:
    return GATE(self, scalars, False)


def full_chunks(rows: Any, width: int) -> Any:
    return np.pad(rows, ((width - len(rows), 0), (0, 0)))


TURNS, GATE = engine.turns, CoreMLEngine.gate


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (engine, "turns", shifted_positions),
        (CoreMLEngine, "gate", ungated),
        (engine, "padded", full_chunks),
    ],
    ids=["positions shifted", "last token not scaled", "padding on the left"],
)
def test_a_host_that_errs_fails_the_lowering_leg(
    measurement: Measurement, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, broken: Any
):
    monkeypatch.setattr(where, name, broken)
    assert "lowering" in measurement.run(None, None).report.failed


def test_a_prompts_earlier_chunks_must_not_be_scaled(emitted: Emit, monkeypatch: pytest.MonkeyPatch):
    plan, folded, graphs = emitted("llava", "qwen2", "float32", "gate")
    embeds = np.random.default_rng(0).standard_normal((1, 100, plan.base.spec.hidden_size)).astype(np.float32)
    step = Step(inputs_embeds=embeds, lengths=np.array([100]), position_ids=np.arange(100)[None])

    def logits() -> Any:
        opened = CoreMLEngine(graphs, strict=True)
        return opened.forward(opened.new_cache(1), step, None, "scaled")

    oracle = reference(plan, folded).engine
    expected = oracle.forward(oracle.new_cache(1), step, None, "scaled")
    assert relative_error(expected, logits()) <= STRICT
    monkeypatch.setattr(CoreMLEngine, "gate", lambda self, scalars, gated: GATE(self, scalars, True))
    assert relative_error(expected, logits()) > 10 * STRICT  # one position of a hundred was scaled wrongly
