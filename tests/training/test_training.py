"""The trainer's parts: exact cached prefixes, fair batches, scalars in bounds, probes that find things."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from scale_export.core.errors import UserError
from scale_export.model.asking import answer_questions, target_ids
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach_trainable
from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.training.examples import IGNORED, Example, encode_examples, whole_sequences
from scale_export.training.loop import FullScorer, PrefixScorer, batches, score
from scale_export.training.options import TrainOptions, silent
from scale_export.training.prefix import PrefixStore, can_cache_prefix
from scale_export.training.scale import train_on_examples, train_scale
from tests.helpers.models import FAMILIES
from tests.helpers.training import EXACT, PAD, loss_and_gradient, scalars

QUICK = TrainOptions(steps=5, batch_size=8, evaluate_every=5)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    directory: Path = tmp_path_factory.mktemp("model")
    return FAMILIES["llava"](directory=directory), AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(opened: tuple[Any, Any]) -> Any:
    return opened[0]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions("gridworld", "calibration", limit=48)


@pytest.fixture(scope="module")
def examples(opened: tuple[Any, Any], questions: list[Question]) -> list[Example]:
    return encode_examples(*opened, questions, silent, "read")


def test_targets_are_the_templates_answer_and_an_end_token(opened: Any, questions: list[Question]) -> None:
    model, processor = opened
    end = processor.tokenizer.eos_token_id
    question = replace(questions[0], answer="left of it")
    expected = (*processor.tokenizer("left of it", add_special_tokens=False).input_ids, end)
    assert target_ids(processor, question, [end]) == expected
    spaced = copy.deepcopy(processor)
    spaced.chat_template = processor.chat_template.replace("'</s>' if", "' ' if").replace(
        "{% if message['content'] is string %}",
        "{{ ' ' if message['role'] == 'assistant' else '' }}{% if message['content'] is string %}",
    )
    led = (*processor.tokenizer(" left of it", add_special_tokens=False).input_ids, end)
    assert target_ids(spaced, question, [end]) == led != expected
    with pytest.raises(UserError, match="has no tokens"):
        target_ids(processor, replace(question, answer=""), [end])
    assert model.config.text_config.eos_token_id == end


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
        replace(questions[0], picture=image.crop((0, 0, 96, 40))),
        replace(questions[1], picture=None),
        questions[2],
        replace(questions[3], picture=image.crop((0, 0, 30, 96))),
    ]
    examples = encode_examples(model, processor, mixed, silent, "read")
    assert can_cache_prefix(model)
    with attach_trainable(model, scalars(model)) as handle:
        for scorer in (PrefixScorer(model, handle, PrefixStore(model, 0)), FullScorer(model, handle, PAD)):
            for some in (examples, examples[1:], examples[:2]):
                alone = sum(float(scorer([e]).loss) for e in some)
                assert float(scorer(some).loss) == pytest.approx(alone, rel=1e-4)


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


def trained(model: Any, examples: list[Example], **changes: Any) -> Any:
    options = replace(QUICK, **changes)
    return train_on_examples(model, options, examples[:32], examples[32:], pad_id=PAD, progress=silent)


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
    with pytest.raises(UserError, match="no other questions in its train split; set replay to 0"):
        next(batches(only, options))


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
    with pytest.raises(UserError, match="cannot select 4 layers: only 3 are trainable"):
        trained(model, examples, select=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"bound": 0.0}, "bound is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"replay": 1.0}, r"replay is 1.0; give a share of non-spatial questions in \[0, 1\)"),
        ({"select": 0}, "select is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"cache_mib": -1}, "cache_mib is -1"),
        ({"sites": "head"}, r"sites is 'head' \(did you mean 'heads'\?\); give one of heads, mlp, both"),
        ({"scope": "lest"}, r"scope is 'lest' \(did you mean 'last'\?\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions(**changes)


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


def test_whole_sequences_predict_answers_only(examples: list[Example]) -> None:
    batch = whole_sequences(examples[:4], PAD)
    for row, example in enumerate(examples[:4]):
        predicted = batch.targets[row][batch.targets[row] != IGNORED]
        assert tuple(predicted.tolist()) == example.target
        at = len(example.prompt_ids) - 1
        assert batch.inputs["input_ids"][row, : at + 1].tolist() == example.prompt_ids.tolist()
        assert batch.inputs["attention_mask"][row].sum() == at + len(example.target)
