"""Streamed models: the same bits as loaded ones, nothing held, and whole exports that never load the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export import UserError, fold, verify
from scale_export.model.arithmetic import TorchKernels
from scale_export.model.base import BaseModel, open_base
from scale_export.model.sites import text_decoder
from scale_export.model.streaming import StreamedKernels
from scale_export.proof.cases import few_prompts, reference_cases
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.models import FAMILIES


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_streamed_model_gives_the_loaded_ones_bits(base_of: Any, family: str):
    base = base_of(family, "llama")
    coefficients = random_coefficients(base)
    prompts = few_prompts(text_alone=base.family.takes_text_alone)
    loaded, streamed = (
        reference_cases(model, base.processor, coefficients, prompts, steps=2)
        for model in (base.model, base.streamed_model)
    )
    for left, right in zip(loaded, streamed, strict=True):
        assert left.tokens == right.tokens
        assert np.array_equal(left.logits, right.logits)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_tower_alone_is_the_loaded_models(base_of: Any, family: str):
    base = base_of(family, "llama")
    expected = base.family.vision_module(base.model)
    found, state = base.vision.state_dict(), expected.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    for left, right in zip(base.vision.buffers(), expected.buffers(), strict=True):
        assert torch.equal(left, right)


def test_the_decoder_holds_nothing_before_and_after_a_forward(base_of: Any):
    model = open_base(str(base_of("llava", "llama").directory)).streamed_model
    weights = [*text_decoder(model).parameters(), *model.get_output_embeddings().parameters()]
    assert all(weight.is_meta for weight in weights)
    model(input_ids=torch.tensor([[3, 4, 5]]))
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10**6]]))
    weights = [*text_decoder(model).parameters(), *model.get_output_embeddings().parameters()]
    assert all(weight.is_meta for weight in weights)
    assert not any(weight.is_meta for weight in model.model.vision_tower.parameters())


def test_streamed_kernels_hold_nothing_and_look_the_same(base_of: Any):
    weights = base_of("llava", "llama-biased").weights
    loaded, streamed = TorchKernels(weights), StreamedKernels(weights)
    assert not dict(streamed.tensors)
    for name, tensor in loaded.tensors.items():
        assert torch.equal(streamed.tensors[name], tensor)
    assert streamed.tensors.get("lm_head.bias") is None


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseModel], BaseModel]:
    """A base model that fails where something loads it whole."""

    def guard(base: BaseModel) -> BaseModel:
        def refuse(self: Any) -> Any:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(BaseModel, "model", property(refuse))
        return base

    return guard


@pytest.mark.parametrize(("precision", "scope"), [("int4", "last"), ("int8", "all"), ("float32", "last")])
def test_a_streamed_export_never_loads_the_model(
    base_of: Any, never_loaded: Any, tmp_path: Path, precision: str, scope: Any
):
    base = base_of("llava", "llama")
    coeffs = saved(random_coefficients(base, scope), tmp_path)
    never_loaded(base)
    out = tmp_path / "package"
    outcome = fold_on(base, coeffs, "cpu", out=out, precision=precision, evaluation="none", parity="streamed")
    legs = outcome.parity["legs"]
    assert legs["fold"]["passed"] and legs["lowering"]["passed"] and legs["fold"]["cases"] == 2
    assert outcome.parity["answer_agreement"] is None
    assert any(line.startswith("answer agreement: ") for line in outcome.parity["not_checked"])
    if precision == "float32":
        assert outcome.passed and verify(out, selftest_only=True).selftest["answers_as_pytorch"] is None
    else:
        assert legs["lowering"]["weights"] == "dequantized" and legs["quantization"]["kl"] is not None
        assert len(legs["lowering"]["front"]) == 2


@pytest.mark.parametrize("parity", ["streamed", "files"])
def test_a_checkpoint_is_checked_without_loading_the_model(
    base_of: Any, never_loaded: Any, tmp_path: Path, parity: str
):
    base = base_of("llava", "llama")
    coeffs = saved(random_coefficients(base, "all"), tmp_path)
    never_loaded(base)
    out = tmp_path / "folded"
    outcome = fold_on(base, coeffs, "checkpoint", out=out, evaluation="none", parity=parity)
    legs = outcome.parity["legs"]
    assert outcome.passed and legs["tensors"]["passed"] and legs["preprocessing"]["passed"]
    named = {line.partition(":")[0] for line in outcome.parity["not_checked"]}
    assert ({"fold", "storage"} <= named) == (parity == "files")
    assert (legs["storage"] is None) == (parity == "files")


def test_graphs_are_not_checked_as_files(base_of: Any, coefficient_file: Path, tmp_path: Path):
    model = str(base_of("llava", "llama").directory)
    with pytest.raises(UserError, match="use --parity streamed"):
        fold(coefficient_file, "cpu", model=model, out=tmp_path / "out", parity="files")
