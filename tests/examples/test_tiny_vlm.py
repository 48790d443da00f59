"""The shipped model, really trained: every leg on held-out questions, at every precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import open_package
from scale_export.coefficients.file import load_coefficients
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.pictures import load_picture
from scale_export.core.progress import WorkLog
from scale_export.model.asking import answer_questions
from scale_export.model.base import open_base
from scale_export.model.hooks import attach
from scale_export.model.identity import check_base
from scale_export.pipeline.fold import Outcome
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.answers import ask_all
from scale_export.proof.measure import Measurement
from scale_export.proof.task import task_leg
from scale_export.questions import load_questions
from tests.helpers.emission import weights_of
from tests.helpers.folds import fold_on, opened_once

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    """``exported(precision, coefficient file, questions)``: measured on the whole held-out test split, or its start."""

    @functools.cache
    def build(precision: str, file: str = "spatial.pt", questions: int | None = None) -> Outcome:
        out = tmp_path_factory.mktemp("packages") / f"{Path(file).stem}-{precision}"
        return fold_on(
            opened_once(EXAMPLE / "model"),
            EXAMPLE / file,
            "cpu",
            out=out,
            precision=precision,
            eval_limit=questions,
        )

    return build


@pytest.mark.parametrize("name", ["spatial.pt", "spatial.safetensors", "spatial_all.pt"])
def test_the_shipped_files_fit_the_shipped_model(name: str):
    coefficients = load_coefficients(EXAMPLE / name)
    base = open_base(coefficients.base.base_model, relative_to=EXAMPLE)
    check_base(coefficients, base.checkpoint)
    assert coefficients.scope == ("all" if "all" in name else "last")
    assert coefficients.training["data"] == "gridworld"


def test_the_twins_are_equal():
    first, second = (
        load_coefficients(EXAMPLE / "spatial.pt"),
        load_coefficients(EXAMPLE / "spatial.safetensors"),
    )
    for a, b in zip(first.head_scale, second.head_scale, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.base == second.base


def test_float32_answers_as_pytorch_on_every_question(exported: Any):
    outcome = exported("float32")
    legs = outcome.parity["legs"]
    assert outcome.passed and outcome.plan.fold == "gate"
    assert legs["task"]["cases"] >= 1000
    assert legs["task"]["agreement_outside_near_ties"] == 1
    assert legs["task"]["near_ties"] <= 0.01 * legs["task"]["cases"]
    gain = (
        legs["task"]["accuracy"]["scale"]["spatial"]["value"]
        / legs["task"]["accuracy"]["base"]["spatial"]["value"]
    )
    loss = (
        legs["task"]["accuracy"]["base"]["other"]["value"]
        - legs["task"]["accuracy"]["scale"]["other"]["value"]
    )
    assert gain >= 1.3 and loss <= 0.03


def test_int8_keeps_the_gain_and_all_six_legs_run(exported: Any):
    outcome = exported("int8")
    assert outcome.passed
    assert all(leg and leg["passed"] for leg in outcome.parity["legs"].values())
    assert outcome.parity["legs"]["task"]["gain_retention"] >= 0.98
    assert outcome.parity["not_checked"] == []


def test_int4_keeps_the_gain_and_is_reported_with_intervals(exported: Any):
    outcome = exported("int4", questions=512)  # the README has all 2,048
    assert outcome.plan.quantizer == "gptq"
    task = outcome.parity["legs"]["task"]
    assert task["gain_retention"] >= 0.95
    assert task["accuracy"]["export"]["spatial"]["low"] < task["accuracy"]["export"]["spatial"]["high"]
    assert task["gain_retention_95"][0] < task["gain_retention"] < task["gain_retention_95"][1]


def test_scalars_of_scope_all_fold_into_weights(exported: Any):
    outcome = exported("int8", "spatial_all.pt", questions=512)  # what folds is the point here
    assert outcome.passed and outcome.plan.fold == "weights"
    assert outcome.parity["legs"]["quantization"]["codes_identical"] is True


def test_core_ml_in_float16_answers_as_pytorch(tmp_path: Path):
    """By the interpreter, float16 rounded after every operation; the README has the whole split, and so has the demo.

    One wrong answer in 256 fails, and without the scalars every fourth is another.
    """
    base = opened_once(EXAMPLE / "model")
    outcome = fold_on(
        base, EXAMPLE / "spatial.pt", "coreml", out=tmp_path / "mac", precision="float16", eval_limit=256
    )
    task = outcome.parity["legs"]["task"]
    assert outcome.passed and task["cases"] == 256
    assert task["agreement_outside_near_ties"] == 1
    assert outcome.parity["legs"]["lowering"]["value"] <= LOWERING_RELATIVE["float16"]


def test_core_ai_answers_as_pytorch(tmp_path: Path):
    """By Apple's own runtime, which is slow: few questions beside the parity prompts, and a graph parity only."""
    pytest.importorskip("coreai")
    base = opened_once(EXAMPLE / "model")
    outcome = fold_on(base, EXAMPLE / "spatial.pt", "coreai", out=tmp_path / "apple", eval_limit=8)
    assert outcome.passed, outcome.parity
    assert any("graph parity, not device parity" in line for line in outcome.parity["not_checked"])


def test_naive_folding_changes_answers(exported: Any):
    """The trained scalars folded into weights as if they acted on every token: the fold leg and the answers say so."""
    healthy = exported("float32")
    plan = replace(healthy.plan, fold="weights")
    graphs = {role: healthy.path / f"{role}.onnx" for role in ("decoder", "vision", "embedding")}
    graphs["runtime"] = healthy.path / "runtime.json"
    measurement = Measurement(
        plan=plan, weights=weights_of(plan), directory=healthy.path, graphs=graphs, log=WorkLog(quiet=True)
    )
    assert "fold" in measurement.run(None, None).report.failed


def test_the_task_leg_sees_an_export_without_its_scalars(exported: Any):
    """A package whose scalars are switched off: gain retention falls to nothing and the leg fails."""
    outcome = exported("float32")
    package = open_package(outcome.path)
    package.scale = 0.0
    base, questions = outcome.plan.base, load_questions("gridworld", "test", limit=400)

    def ask(question: Any) -> str:
        return package.answer([question.image], question.prompt, max_new_tokens=16)

    answered = ask_all(base.model, base.processor, outcome.plan.coefficients, ask, questions, lambda *a: None)
    leg = task_leg("gridworld", answered, outcome.plan.target.parity.of("float32"))
    assert leg.passed is False
    assert leg.retention is not None and abs(leg.retention.value) < 0.05


def test_the_demo_question_shows_the_repair(exported: Any):
    package = open_package(exported("int8").path)
    picture = load_picture(EXAMPLE / "scene.png")
    question = (EXAMPLE / "question.txt").read_text(encoding="utf-8").strip()
    truth = (EXAMPLE / "answer.txt").read_text(encoding="utf-8").strip()
    assert package.answer([picture], question) == truth
    package.scale = 0
    assert package.answer([picture], question) != truth


def test_batched_left_padded_answers_are_the_single_ones():
    coefficients = load_coefficients(EXAMPLE / "spatial.pt")
    base = open_base(coefficients.base.base_model, relative_to=EXAMPLE)
    make_plan(coefficients, base, load_target("cpu"), ExportOptions())
    questions = load_questions("gridworld", "validation", limit=24)
    with attach(base.model, coefficients):
        together = [a.text for a in answer_questions(base.model, base.processor, questions, batch_size=24)]
        alone = [a.text for a in answer_questions(base.model, base.processor, questions, batch_size=1)]
    assert together == alone
