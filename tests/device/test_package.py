"""The opened package: streaming, strength, swapped scalars, and the same logits as the hooked model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export import UserError, attach, open_package
from scale_export.coefficients.file import load_coefficients
from scale_export.core import limits
from scale_export.core.compare import relative_error
from tests.helpers.coefficients import random_coefficients
from tests.helpers.pictures import picture

QUESTION = "where is the red circle ?"


@pytest.fixture
def opened(package: Path) -> Any:
    return open_package(package)


def hooked_logits(base: Any, coefficients: Any, inputs: Any, strength: float) -> Any:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    with attach(base.model, coefficients, strength=strength), torch.no_grad():
        return base.model(**tensors).logits[:, -1].numpy()


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_logits_are_pytorchs_at_every_strength(opened: Any, base_of: Any, strength: float):
    opened.scale = strength
    found = opened.logits([picture()], QUESTION)
    inputs = opened.prepare([picture()], QUESTION)
    expected = hooked_logits(base_of("llava", "llama"), opened.coefficients, inputs, strength)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]


def test_strength_outside_its_range_is_refused(opened: Any):
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="between 0"):
            opened.scale = strength


def test_streamed_pieces_make_up_the_answer(opened: Any):
    pieces = list(opened.generate([picture()], QUESTION, max_new_tokens=6))
    assert "".join(pieces).strip() == opened.answer([picture()], QUESTION, max_new_tokens=6)


def test_swapped_scalars_take_effect_and_can_be_taken_back(opened: Any, base_of: Any):
    own = opened.coefficients
    before = opened.logits([picture()], QUESTION)
    other = replace(own, mlp_scale=own.mlp_scale * np.float32(0.5))
    opened.coefficients = other
    found = opened.logits([picture()], QUESTION)
    expected = hooked_logits(base_of("llava", "llama"), other, opened.prepare([picture()], QUESTION), 1.0)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]
    opened.coefficients = own
    np.testing.assert_array_equal(opened.logits([picture()], QUESTION), before)


def test_scalars_of_another_base_or_scope_are_refused(opened: Any, base_of: Any):
    with pytest.raises(UserError, match="another base model"):
        opened.coefficients = random_coefficients(base_of("llava", "qwen2"))
    with pytest.raises(UserError, match="scope 'all'"):
        opened.coefficients = random_coefficients(base_of("llava", "llama"), "all")


def test_a_prompt_beyond_the_context_is_refused(opened: Any):
    with pytest.raises(UserError, match="context of 512"):
        opened.answer([], "word " * 600, max_new_tokens=2)


def test_coefficients_in_the_package_are_the_ones_it_was_made_of(opened: Any, coefficient_file: Path):
    made_of = load_coefficients(coefficient_file)
    for ours, theirs in zip(opened.coefficients.head_scale, made_of.head_scale, strict=True):
        np.testing.assert_array_equal(ours, theirs)
