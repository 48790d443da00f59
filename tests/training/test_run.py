"""The whole ``train`` run on a tiny random model: what it writes, says and refuses."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from scale_export.coefficients.file import load_coefficients
from scale_export.core.errors import UserError
from scale_export.model.asking import answer_questions
from scale_export.model.hooks import attach
from scale_export.questions import load_questions
from scale_export.questions.scoring import is_right
from scale_export.training.run import TrainOptions, TrainReport, run_training, training_table
from tests.helpers.models import FAMILIES

QUICK = TrainOptions(steps=4, batch_size=8, evaluate_every=2, limit=24)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the base model in ``model``."""
    directory = tmp_path_factory.mktemp("place")
    FAMILIES["llava"](directory=directory / "model")
    return directory


@pytest.fixture(scope="module")
def report(place: Path) -> TrainReport:
    options = replace(QUICK, select=2, baselines=True, report_split="calibration")
    return run_training(place / "model", place / "spatial.pt", options)


def test_every_file_is_written_and_loads(place: Path, report: TrainReport) -> None:
    assert {role: path.name for role, path in report.files.items()} == {
        "coefficients": "spatial.pt",
        "twin": "spatial.safetensors",
        "heat_map": "spatial.png",
        "sensitivity": "spatial.sensitivity.png",
        "report": "spatial.train.json",
    }
    for role in ("coefficients", "twin"):
        loaded = load_coefficients(report.files[role])
        assert loaded.layer_indices == report.result.layer_indices
        np.testing.assert_array_equal(np.stack(loaded.head_scale), report.result.head_scale)
        np.testing.assert_array_equal(loaded.mlp_scale, report.result.mlp_scale)
        assert loaded.base.base_model == "model"
        assert loaded.bound.r == 1.0
        assert loaded.training["data"] == "gridworld"
        assert loaded.training["select"] == 2
    for role in ("heat_map", "sensitivity"):
        with Image.open(report.files[role]) as image:
            assert image.width > 300
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 50


def test_the_report_is_strict_json_with_the_whole_table(report: TrainReport) -> None:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads(report.files["report"].read_text(), parse_constant=refuse)
    assert written["options"]["seed"] == 0
    assert [row["name"] for row in written["table"]] == ["s = 1", "ScAle", "LoRA r8", "IA3"]
    assert written["table"][0]["parameters"] == 0
    assert written["table"][1]["parameters"] == 10
    assert {row["accuracy"]["spatial"]["total"] for row in written["table"]} == {12}
    assert len(written["sensitivity"]["ranking"]) == 15
    assert [look["step"] for look in written["history"]] == [0, 2, 4]
    assert written["history"][0]["train_loss"] is None


def test_the_table_tells_what_the_written_file_does(place: Path, report: TrainReport) -> None:
    """Ask again with the file that was written, attached to a model that was loaded afresh."""
    model = AutoModelForImageTextToText.from_pretrained(place / "model", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(place / "model")
    questions = load_questions("gridworld", "calibration", limit=24)
    for row, coefficients in zip(report.rows, (None, load_coefficients(report.files["twin"])), strict=False):
        if coefficients is None:
            answers = answer_questions(model, processor, questions)
        else:
            with attach(model, coefficients):
                answers = answer_questions(model, processor, questions)
        for kind, accuracy in row.accuracy.items():
            asked = [(a, q) for a, q in zip(answers, questions, strict=True) if q.kind == kind]
            assert accuracy.total == len(asked)
            assert accuracy.correct == sum(bool(is_right(a.text, q)) for a, q in asked)


def test_the_terminal_table_names_every_row(report: TrainReport) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(training_table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        "gridworld, calibration split",
        "s = 1",
        "ScAle",
        "LoRA r8",
        "IA3",
        "spatial",
        "other",
        "/4",
    ):
        assert words in text


def test_two_runs_write_the_same_bytes(place: Path) -> None:
    reports = [run_training(place / "model", place / f"{name}.safetensors", QUICK) for name in ("a", "b")]
    for role in ("coefficients", "twin"):
        first, second = (r.files[role].read_bytes() for r in reports)
        assert first == second
    assert "sensitivity" not in reports[0].files


def test_scope_all_is_written_as_such(place: Path) -> None:
    """Missing parents of the place are made."""
    done = run_training(place / "model", place / "deep/folder/every.pt", replace(QUICK, scope="all", steps=1))
    assert load_coefficients(done.files["coefficients"]).scope == "all"


def test_outputs_are_refused_before_any_work(place: Path, report: TrainReport) -> None:
    nowhere = place / "no model"
    with pytest.raises(UserError, match=r"spatial.pt, .* exist already"):
        run_training(nowhere, report.files["coefficients"], QUICK)
    with pytest.raises(UserError, match=r"must end in \.pt or \.safetensors"):
        run_training(nowhere, place / "spatial.bin", QUICK)
    (place / "a file").write_bytes(b"")
    with pytest.raises(UserError, match="a file is no directory"):
        run_training(nowhere, place / "a file" / "deeper" / "spatial.pt", QUICK)
    with pytest.raises(UserError, match="no model"):
        run_training(nowhere, report.files["coefficients"], QUICK, force=True)
    with pytest.raises(UserError, match="unknown question set 'gridwurld'"):
        run_training(place / "model", place / "new.pt", replace(QUICK, data="gridwurld"))
    assert not list(place.glob("new*"))
