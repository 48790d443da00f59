"""Greedy answers: batched equals alone, and the figures are those of a plain forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from scale_export.core.errors import UserError
from scale_export.model.asking import answer_questions, encode_prompts, rules_of_model
from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.questions.scoring import is_right
from tests.helpers.models import FAMILIES

STEPS = 6


@pytest.fixture(scope="module")
def model_and_processor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    directory: Path = tmp_path_factory.mktemp("model")
    return FAMILIES["llava"](directory=directory), AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Seven questions of different lengths, one of them without a picture."""
    found = load_questions("gridworld", "calibration", limit=7)
    return [*found[:3], replace(found[3], pictures=()), *found[4:]]


def test_batches_answer_as_single_questions_do(model_and_processor: Any, questions: list[Question]) -> None:
    model, processor = model_and_processor
    told: list[tuple[int, int]] = []
    together = answer_questions(
        model,
        processor,
        questions,
        batch_size=4,
        max_new_tokens=STEPS,
        progress=lambda *done: told.append(done),
    )
    alone = [answer_questions(model, processor, [q], max_new_tokens=STEPS)[0] for q in questions]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.margins, b.margins, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(a.peaks, b.peaks, rtol=1e-4)
    assert told == [(4, 7), (7, 7)]


@torch.no_grad()
def test_margins_and_peaks_are_those_of_the_logits(
    model_and_processor: Any, questions: list[Question]
) -> None:
    model, processor = model_and_processor
    answer = answer_questions(model, processor, questions[:1], max_new_tokens=STEPS)[0]
    inputs = encode_prompts(processor, questions[:1])
    grown = torch.tensor([[*inputs["input_ids"][0].tolist(), *answer.token_ids[:-1]]])
    logits = model(input_ids=grown, pixel_values=inputs["pixel_values"]).logits[0, -len(answer.token_ids) :]
    best = logits.topk(2, dim=-1)
    assert tuple(best.indices[:, 0].tolist()) == answer.token_ids
    np.testing.assert_allclose(answer.margins, best.values[:, 0] - best.values[:, 1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answer.peaks, logits.abs().amax(-1), rtol=1e-4)
    assert answer.margins.dtype == np.float32 == answer.peaks.dtype


def test_an_answer_ends_with_its_end_token(model_and_processor: Any, questions: list[Question]) -> None:
    model, processor = model_and_processor
    free = answer_questions(model, processor, questions[:1], max_new_tokens=STEPS)[0]
    assert len(free.token_ids) == STEPS
    stop = free.token_ids[2]
    first = free.token_ids.index(stop)
    ended = copy.deepcopy(model.generation_config)
    try:
        model.generation_config.eos_token_id = [model.generation_config.eos_token_id, stop]
        cut = answer_questions(model, processor, questions[:2], max_new_tokens=STEPS)[0]
    finally:
        model.generation_config = ended
    assert cut.token_ids == free.token_ids[: first + 1]
    assert len(cut.margins) == first + 1


def test_correct_means_equal_but_for_case_and_spaces(questions: list[Question]) -> None:
    question = replace(questions[0], answer="Top Left")
    assert is_right(" top left ", question)
    assert not is_right("top left corner", question)
    assert not is_right("", question)


def test_processors_that_cannot_ask_are_refused(model_and_processor: Any, questions: list[Question]) -> None:
    model, processor = model_and_processor
    mute = copy.deepcopy(processor)
    mute.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompts(mute, questions[:1])
    padless = copy.deepcopy(processor)
    padless.tokenizer.pad_token = None
    assert len(encode_prompts(padless, questions[:1])["input_ids"]) == 1
    with pytest.raises(UserError, match="no pad token"):
        encode_prompts(padless, questions[:2])
    endless, silent = copy.deepcopy(processor), copy.deepcopy(model)
    endless.tokenizer.eos_token = None
    silent.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="no end token"):
        rules_of_model(silent, endless)
