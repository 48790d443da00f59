"""Trained scalars: repeatable, in their bounds, stopped at the best; a probe finds a planted head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export.core.errors import UserError
from scale_export.questions.question import Question
from scale_export.training.examples import Example
from scale_export.training.options import silent
from scale_export.training.scale import train_on_examples, train_scale
from tests.helpers.models import FAMILIES
from tests.helpers.training import PAD, QUICK, trained


@pytest.mark.parametrize("scope", ["last", "all"])
def test_a_few_steps_lower_the_loss_and_leave_the_model_alone(
    opened: Any, questions: list[Question], scope: Any
) -> None:
    model, processor = opened
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.train().requires_grad_(True)
    try:
        result = train_scale(
            model, processor, replace(QUICK, scope=scope), questions[:24], questions[24:40], progress=silent
        )
        assert model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    finally:
        model.eval().requires_grad_(False)
    first, last = result.course.history[0], result.course.history[-1]
    assert result.course.steps == last.step == 5
    assert last.validation_loss < first.validation_loss
    assert result.head_scale.shape == (3, 4)
    assert result.mlp_scale.shape == (3,)
    assert result.trained == 15
    assert result.head_scale.dtype == np.float32 == result.mlp_scale.dtype
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_seed_gives_the_same_scalars_bit_for_bit(model: Any, examples: list[Example]) -> None:
    one, again, other = (trained(model, examples, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.head_scale, again.head_scale)
    assert one.course == again.course
    assert not np.array_equal(one.head_scale, other.head_scale)


def test_a_small_cache_trains_the_same_scalars(model: Any, examples: list[Example]) -> None:
    kept, recomputed = (trained(model, examples, cache_mib=mib) for mib in (64, 0))
    np.testing.assert_allclose(kept.head_scale, recomputed.head_scale, rtol=1e-4)


def test_bound_sites_and_layers_hold(model: Any, examples: list[Example]) -> None:
    heads = trained(model, examples, sites="heads", bound=0.25, learning_rate=5.0, layers=(2, 0))
    assert heads.layer_indices == (0, 2)
    assert heads.trained == 8
    assert (heads.mlp_scale == 1).all()
    moved = np.abs(heads.head_scale - 1)
    assert 0.2 < moved.max() <= 0.25
    mlp = trained(model, examples, sites="mlp")
    assert (mlp.head_scale == 1).all()
    assert (mlp.mlp_scale != 1).any()
    with pytest.raises(UserError, match="cannot train layer 3: the model has decoder layers 0 to 2"):
        trained(model, examples, layers=(0, 3))


def test_early_stop_keeps_the_best_scalars(model: Any, examples: list[Example]) -> None:
    options = replace(QUICK, steps=40, evaluate_every=2, patience=2, learning_rate=1.0)
    result = train_on_examples(model, options, examples[:16], examples[32:], pad_id=PAD, progress=silent)
    losses = {look.step: look.validation_loss for look in result.course.history}
    assert result.course.steps < 40
    assert result.course.steps - result.course.best_step == 4
    assert losses[result.course.best_step] == min(losses.values())
    until = replace(options, steps=result.course.best_step)
    best = train_on_examples(model, until, examples[:16], examples[32:], pad_id=PAD, progress=silent)
    assert np.array_equal(result.head_scale, best.head_scale)
    assert np.array_equal(result.mlp_scale, best.mlp_scale)


def test_a_planted_head_is_found_and_its_layer_selected(examples: list[Example], tmp_path: Path) -> None:
    model = FAMILIES["llava"](directory=tmp_path, seed=5)
    for index, layer in enumerate(model.model.language_model.layers):
        heads = layer.self_attn.o_proj.weight.view(64, 4, 32)
        heads[:, [head for head in range(4) if (index, head) != (1, 2)]] = 0
    result = trained(model, examples, select=1, sites="heads", steps=1)
    table = result.sensitivity
    assert table.ranking()[0][:2] == (1, 2)
    assert result.layer_indices == (1,)
    assert table.loss_change.shape == (2, 3, 5)
    assert np.isnan(table.strength[:, -1]).all()
    planted = table.strength[1, 2]
    assert planted > 1e-3
    assert np.nansum(table.strength) == planted
    both = trained(model, examples, select=2, steps=1)
    assert len(both.layer_indices) == 2
    assert len(both.sensitivity.ranking()) == 15
    up, down = both.sensitivity.loss_change
    felt = up != down
    assert ((both.sensitivity.signed > 0) == (up > down))[felt].all()
    with pytest.raises(UserError, match="--select 4 is refused: only 3 layers are trained"):
        trained(model, examples, select=4)
