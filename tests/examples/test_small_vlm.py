"""The larger shipped model: it loads, answers as its page says, and exports at int4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scale_export import fold
from scale_export.coefficients.file import load_coefficients
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.model.asking import answer_questions
from scale_export.model.base import open_base
from scale_export.model.hooks import attach
from scale_export.model.identity import check_base
from scale_export.questions import load_questions

EXAMPLE = Path(__file__).parents[2] / "examples/small_vlm"
GAIN, OTHER = 0.32, 0.76
"""Of its page: what ScAle adds to spatial accuracy, and what it leaves of the other."""


@pytest.mark.parametrize(
    "name", ["spatial.pt", "spatial.safetensors", "spatial_seed1.pt", "spatial_seed2.pt"]
)
def test_the_shipped_files_fit_the_shipped_model(name: str) -> None:
    coefficients = load_coefficients(EXAMPLE / name)
    base = open_base(coefficients.base.base_model, relative_to=EXAMPLE)
    check_base(coefficients, base.checkpoint)
    assert coefficients.scope == "last" and coefficients.training["data"] == "atlas"


def test_the_seeds_differ() -> None:
    seeds = [load_coefficients(EXAMPLE / f"spatial{end}.pt") for end in ("", "_seed1", "_seed2")]
    assert [c.training["seed"] for c in seeds] == [0, 1, 2]
    assert len({np.concatenate(c.head_scale).tobytes() for c in seeds}) == 3


def test_its_shape_differs_from_the_tiny_models() -> None:
    """Biased q/k/v, heads of 64, one table for embedding and output head: what the tiny model lacks."""
    base = open_base(str(EXAMPLE / "model"))
    assert base.spec.qkv_bias and base.spec.head_dim == 64
    text = base.model.config.text_config
    assert text.model_type == "qwen2" and base.model.config.tie_word_embeddings
    assert (EXAMPLE / "model" / "model.safetensors").stat().st_size < 20e6


@pytest.mark.slow
def test_scale_repairs_spatial_answers() -> None:
    """On 192 held-out questions, within what the page's figures leave room for."""
    coefficients = load_coefficients(EXAMPLE / "spatial.pt")
    base = open_base(coefficients.base.base_model, relative_to=EXAMPLE)
    questions = load_questions("atlas", "test", limit=192)
    spatial = np.array([q.kind == "spatial" for q in questions])

    def right() -> np.ndarray:
        answers = answer_questions(base.model, base.processor, questions, batch_size=96)
        return np.array([a.text == q.answer for a, q in zip(answers, questions, strict=True)])

    before = right()
    with attach(base.model, coefficients):
        after = right()
    assert after[spatial].mean() - before[spatial].mean() > GAIN / 2
    assert after[~spatial].mean() > OTHER - 0.1


@pytest.mark.slow
def test_int4_for_onnx_runtime_is_exact_before_rounding(tmp_path: Path) -> None:
    """Biases, tied embeddings and heads of 64 through the decoder, the fold and ONNX Runtime."""
    outcome = fold(
        EXAMPLE / "spatial.pt",
        "cpu",
        out=tmp_path / "package",
        precision="int4",
        quantizer="rtn",
        evaluation="atlas",
        eval_limit=32,
    )
    legs = outcome.parity["legs"]
    assert legs["fold"]["passed"] and legs["preprocessing"]["passed"]
    assert legs["lowering"]["value"] <= LOWERING_RELATIVE["float32"]
