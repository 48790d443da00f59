"""Packages in the Node example: the same ids, logits and answers as in Python, and what it refuses."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import open_package
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.device.certificate import device_leg, read_result
from scale_export.questions import load_questions
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.forged_graphs import with_defaults
from tests.helpers.javascript import EXAMPLES, claimed_families, driven, needs_node, told
from tests.helpers.packages import reseal
from tests.helpers.pictures import picture

TINY = EXAMPLES / "tiny_vlm"
STRENGTHS = (0, 0.5, 1)
TOKENS = [7, 9, 11]
QUESTIONS = 104

pytestmark = pytest.mark.slow


def apart(found: Any, expected: Any) -> float:
    """max |Δ| / max |expected|."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", claimed_families())
def test_a_random_model_has_pythons_logits(family: str, base_of: Any, tmp_path: Path):
    needs_node()
    base = base_of(family, "llama")
    out, coefficients = tmp_path / family, saved(random_coefficients(base), tmp_path)
    assert fold_on(base, coefficients, "cpu", out=out, precision="float32", evaluation="none").passed
    wide, tall = tmp_path / "wide.png", tmp_path / "tall.png"
    picture(1, (150, 70)).save(wide)
    picture(2, (40, 90)).save(tall)
    asked = [([wide], "is the red circle left ?"), ([tall, wide], "what is above it ?"), ([], "is it ?")]
    found = driven(
        do="ask",
        package=str(out),
        questions=[
            {
                "files": [str(file) for file in files],
                "prompt": words,
                "tokens": TOKENS,
                "strengths": STRENGTHS,
            }
            for files, words in asked
        ],
    )
    package = open_package(out, threads=1)
    for (files, words), answer in zip(asked, found, strict=True):
        assert answer["ids"] == package.prepare(files, words)["input_ids"][0].tolist()
        logits = {}
        for strength in STRENGTHS:
            package.scale = strength
            logits[strength] = package.logits(files, words, TOKENS)
            assert apart(answer["logits"][str(strength)], logits[strength]) <= LOWERING_RELATIVE["float32"]
        assert apart(logits[0], logits[1]) > 0.01 < apart(logits[0.5], logits[1])
    package.scale = 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny(precision, activations)``: a package of the shipped model."""

    @functools.cache
    def build(precision: str, activations: str | None = None) -> Path:
        needs_node()
        out = tmp_path_factory.mktemp("packages") / precision
        base = opened_once(TINY / "model")
        asked = {"precision": precision, "activations": activations, "evaluation": "none"}
        made = fold_on(base, TINY / "spatial.pt", "cpu", out=out, **asked)
        assert made.passed
        return out

    return build


@pytest.mark.parametrize(
    ("precision", "activations"), [("float32", None), ("int8", None), ("int4", None), ("int4", "float16")]
)
def test_the_shipped_model_passes_its_self_test(
    tiny: Any, precision: str, activations: str | None, tmp_path: Path
):
    made = tiny(precision, activations)
    done = told(made, "--self-test", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert sorted({case["strength"] for case in result["cases"]}) == [0, 0.5, 1]
    assert all(case["ids_identical"] and case["pixel_levels"] == 0 for case in result["cases"])
    assert all(case["answer"] == case["answer_expected"] for case in result["cases"])
    if precision == "float32":
        assert max(case["error"] for case in result["cases"]) <= 1e-5
    package = open_package(made, threads=1)
    leg = device_leg(package.files, package, read_result(tmp_path / "result.json"))
    assert leg.passed


def test_a_table_in_the_decoders_file_passes_its_self_test(tmp_path: Path):
    """The head of this model is its embedding table, whose codes lie in ``decoder.onnx.data`` alone."""
    needs_node()
    small, out = EXAMPLES / "small_vlm", tmp_path / "tied"
    base = opened_once(small / "model")
    made = fold_on(
        base, small / "spatial.pt", "cpu", out=out, precision="int4", calib="none", evaluation="none"
    )
    embedding = json.loads((out / "runtime.json").read_text())["graphs"]["embedding"]
    assert made.passed and "decoder.onnx.data" in [data["file"] for data in embedding["data"]]
    done = told(out, "--self-test", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "result.json").read_text())["cases"]
    assert cases and all(case["answer"] == case["answer_expected"] for case in cases)


def test_answers_are_pythons(tiny: Any, tmp_path: Path):
    package, asked = open_package(tiny("int8"), threads=1), []
    questions = load_questions("gridworld", "test", limit=QUESTIONS)
    for number, question in enumerate(questions):
        files = [tmp_path / f"{number}-{index}.png" for index in range(len(question.images))]
        for file, image in zip(files, question.images, strict=True):
            image.save(file)
        asked.append({"files": [str(file) for file in files], "prompt": question.prompt})
    assert len(asked) >= 100
    found = [answer["answer"] for answer in driven(do="ask", package=str(tiny("int8")), questions=asked)]
    assert found == [package.answer(job["files"], job["prompt"], max_new_tokens=16) for job in asked]
    assert len(set(found)) > 5


def test_refusals_are_one_sentence(tiny: Any, tmp_path: Path):
    def refusal(name: str, change: Callable[[Path], object]) -> str:
        changed = tmp_path / name
        shutil.copytree(tiny("int8"), changed)
        change(changed)
        done = told(changed, "is it left ?", "--image", TINY / "scene.png")
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        return done.stderr

    def damage(package: Path) -> None:
        data = bytearray((package / "decoder.onnx.data").read_bytes())
        data[1000] ^= 1
        (package / "decoder.onnx.data").write_bytes(data)

    assert "decoder.onnx.data" in (said := refusal("damaged", damage)) and "SHA-256" in said
    assert "paligemma" in refusal("family", lambda p: reseal(p, lambda t: t.update(model_type="paligemma")))
    assert "older" in refusal("older", lambda p: reseal(p, lambda t: t.update(schema=1)))
    assert "gate" in refusal("dropped", with_defaults)
