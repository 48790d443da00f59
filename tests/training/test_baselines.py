"""LoRA and IA3 learn on the same batches, and the base model comes back untouched."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from scale_export.core.errors import UserError
from scale_export.model.base import BaseModel
from scale_export.questions import load_questions
from scale_export.training.baselines import BASELINES, decoder_linears, trained_baseline
from scale_export.training.examples import Example, encode_examples
from scale_export.training.options import TrainOptions, silent

QUICK = TrainOptions(steps=5, batch_size=8, evaluate_every=5)
PAD = 0


@pytest.fixture(scope="module")
def opened(base_of: Any) -> BaseModel:
    base: BaseModel = base_of("llava", "llama")
    return base


@pytest.fixture(scope="module")
def examples(opened: BaseModel) -> list[Example]:
    questions = load_questions("gridworld", "calibration", limit=48)
    return encode_examples(opened.model, opened.processor, questions, silent, "read")


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_baselines_learn_and_leave_no_trace(
    opened: BaseModel, examples: list[Example], baseline: Any
) -> None:
    model = opened.model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    with trained_baseline(
        baseline, model, PAD, train=examples[:32], validation=examples[32:], options=QUICK, progress=silent
    ) as (wrapped, count, course):
        assert course.history[-1].validation_loss < course.history[0].validation_loss
        assert count == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        with torch.no_grad():
            adapted = wrapped(**examples[0].prompt).logits
    assert not torch.equal(adapted, model(**examples[0].prompt).logits)
    assert [type(m) for m in model.modules()] == kinds
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_missing_peft_names_the_extra(
    opened: BaseModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without_peft(name: str, package: str | None = None) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_peft)
    with (
        pytest.raises(UserError, match=r"scale-export\[train\]"),
        trained_baseline(
            BASELINES[0],
            opened.model,
            PAD,
            train=examples,
            validation=examples,
            options=QUICK,
            progress=silent,
        ),
    ):
        pass


def test_only_the_language_models_matrices_are_adapted(opened: BaseModel) -> None:
    names = decoder_linears(opened.model)
    assert len(names) == 7 * 3
    assert all(name.startswith("model.language_model.layers.") for name in names)
