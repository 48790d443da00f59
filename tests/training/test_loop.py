"""Scoring and batches: losses of the deployed model, whole or from cached prefixes, and fair batches."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from scale_export.core.errors import UserError
from scale_export.model.asking import answer_questions
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach_trainable
from scale_export.questions.question import Question
from scale_export.training.examples import Example, encode_examples, whole_sequences
from scale_export.training.loop import FullScorer, PrefixScorer, Score, batches, fit, score
from scale_export.training.options import silent
from scale_export.training.parameters import ProbeScales
from scale_export.training.prefix import PrefixStore, can_cache_prefix
from scale_export.training.sensitivity import measure_sensitivity
from tests.helpers.models import FAMILIES
from tests.helpers.training import EXACT, PAD, QUICK, loss_and_gradient, scalars


@pytest.mark.parametrize("budget", [0, 150_000, 2**30])
def test_cached_training_equals_the_full_forward(model: Any, examples: list[Example], budget: int) -> None:
    source, store, batch = scalars(model), PrefixStore(model, budget), examples[:12]
    with attach_trainable(model, source) as handle:
        full = loss_and_gradient(FullScorer(model, handle, PAD), source, batch)
        for _ in ("cold", "warm"):
            cached = loss_and_gradient(PrefixScorer(model, handle, store), source, batch)
            assert cached[0] == pytest.approx(full[0], rel=EXACT)
            assert (cached[1] - full[1]).abs().max() <= EXACT * full[1].abs().max()
    assert store.used <= budget
    assert (store.used > 0) == (budget > 0)


@pytest.mark.parametrize("variant", ["llama-biased", "llama3-rope", "mistral-window", "qwen2"])
def test_cached_training_is_exact_for_every_text_model(
    base_of: Callable[[str, str], BaseModel], questions: list[Question], variant: str
) -> None:
    base = base_of("llava_next", variant)
    source = scalars(base.model)
    examples = encode_examples(base.model, base.processor, questions[:8], silent, "read")
    with attach_trainable(base.model, source) as handle:
        full = loss_and_gradient(FullScorer(base.model, handle, PAD), source, examples)
        cached = loss_and_gradient(
            PrefixScorer(base.model, handle, PrefixStore(base.model, 0)), source, examples
        )
    assert cached[0] == pytest.approx(full[0], rel=EXACT)
    assert (cached[1] - full[1]).abs().max() <= EXACT * full[1].abs().max()


@torch.no_grad()
def test_a_wrong_gate_would_show(model: Any, examples: list[Example]) -> None:
    """Sabotage: a gate on the prefix, or none at the last prompt token, is another loss."""
    source, batch = scalars(model), whole_sequences(examples[:12], PAD)
    first = batch.gate.argmax(dim=1, keepdim=True)
    wrong = {
        "everywhere": torch.ones_like(batch.gate),
        "answer only": batch.gate.scatter(1, first, 0.0),
        "one too early": batch.gate.scatter(1, first - 1, 1.0),
    }
    with attach_trainable(model, source) as handle:
        handle.gate_mask = batch.gate
        right = float(score(model, batch).loss)
        for gate in wrong.values():
            handle.gate_mask = gate
            assert abs(float(score(model, batch).loss) - right) > 100 * EXACT * right


@torch.no_grad()
def test_the_trained_loss_is_the_deployed_models(model: Any, examples: list[Example]) -> None:
    """Prefill and decode steps under the automatic gate, as in generation, with the right tokens fed in."""
    source, example = scalars(model), max(examples, key=lambda e: len(e.target))
    assert len(example.target) > 2
    with attach_trainable(model, source) as handle:
        output = model(**example.prompt, use_cache=True)
        loss, length = 0.0, len(example.prompt_ids)
        for step, token in enumerate(example.target, 1):
            loss -= float(output.logits[0, -1].log_softmax(-1)[token])
            output = model(
                input_ids=torch.tensor([[token]]),
                attention_mask=torch.ones(1, length + step),
                past_key_values=output.past_key_values,
            )
        trained = PrefixScorer(model, handle, PrefixStore(model, 0))([example, *examples[:3]])
        alone = PrefixScorer(model, handle, PrefixStore(model, 0))(examples[:3])
    assert float(trained.loss - alone.loss) == pytest.approx(loss, rel=1e-4)


@torch.no_grad()
def test_exact_means_that_greedy_generation_gives_the_answer(
    opened: Any, questions: list[Question], examples: list[Example]
) -> None:
    model, processor = opened
    with attach_trainable(model, scalars(model)):
        greedy = answer_questions(model, processor, questions[:6], max_new_tokens=4)
    right = [replace(e, target=a.token_ids) for e, a in zip(examples[:6], greedy, strict=True)]
    wrong = [replace(e, target=(*e.target[:-1], (e.target[-1] + 1) % 100)) for e in right]
    with attach_trainable(model, scalars(model)) as handle:
        for scorer in (PrefixScorer(model, handle, PrefixStore(model, 0)), FullScorer(model, handle, PAD)):
            assert scorer(right).exact.all()
            assert not scorer(wrong).exact.any()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_mixed_batches_score_as_single_questions(
    family: str, questions: list[Question], tmp_path: Path
) -> None:
    """Pictures of several shapes (more or fewer tiles) and a question without one, padded into one batch."""
    model = FAMILIES[family](directory=tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    image = questions[0].image
    assert image is not None
    mixed = [
        replace(questions[0], pictures=(image.crop((0, 0, 96, 40)),)),
        replace(questions[1], pictures=()),
        questions[2],
        replace(questions[3], pictures=(image.crop((0, 0, 30, 96)),)),
    ]
    examples = encode_examples(model, processor, mixed, silent, "read")
    assert can_cache_prefix(model)
    with attach_trainable(model, scalars(model)) as handle:
        for scorer in (PrefixScorer(model, handle, PrefixStore(model, 0)), FullScorer(model, handle, PAD)):
            for some in (examples, examples[1:], examples[:2]):
                alone = sum(float(scorer([e]).loss) for e in some)
                assert float(scorer(some).loss) == pytest.approx(alone, rel=1e-4)


def test_batches_replay_and_come_round(examples: list[Example]) -> None:
    options = replace(QUICK, batch_size=10, replay=0.3)
    drawn = list(islice(batches(examples, options), 24))
    for batch in drawn:
        assert Counter(e.question.kind for e in batch) == {"spatial": 7, "other": 3}
    spatial = [e.question.id for batch in drawn for e in batch if e.question.kind == "spatial"]
    assert len(spatial) == 168 == 7 * 24
    assert set(Counter(spatial).values()) == {7}
    assert [e.question.kind for e in next(batches(examples, replace(options, replay=0.0)))] == [
        "spatial"
    ] * 10
    only = [e for e in examples if e.question.kind == "spatial"]
    with pytest.raises(
        UserError, match="no other questions in its train split; set replay to 0 or name replay_data"
    ):
        next(batches(only, options))


def test_families_with_states_or_3d_positions_train_by_full_forwards(model: Any) -> None:
    config = copy.deepcopy(model.config)

    class Shell:
        def __init__(self) -> None:
            self.config = config

    assert can_cache_prefix(Shell())
    config.text_config.layer_types = ["linear_attention", "full_attention", "full_attention"]
    assert not can_cache_prefix(Shell())
    config.text_config.layer_types = None
    config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": [4, 6, 6]}
    assert not can_cache_prefix(Shell())


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_model_without_a_finite_loss_trains_nothing(
    model: Any, examples: list[Example], loss: float
) -> None:
    """No later loss is below NaN, so that the untrained scalars would be kept in silence."""

    def broken(asked: Sequence[Example]) -> Score:
        return Score(
            loss=torch.tensor(loss), tokens=len(asked), exact=torch.ones(len(asked), dtype=torch.bool)
        )

    parameters = [torch.ones(2, requires_grad=True)]
    with pytest.raises(UserError, match="loss on the validation questions"):
        fit(broken, parameters, examples, examples, options=QUICK, progress=silent)
    probe = ProbeScales(model, (0, 1), scope="last")
    with pytest.raises(UserError, match="no layer can be ranked"):
        measure_sensitivity(broken, probe, examples, options=QUICK, progress=silent)
