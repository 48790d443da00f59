"""Training examples: the template's answers, and sequences that predict answers only."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.model.asking import target_ids
from scale_export.questions.question import Question
from scale_export.training.examples import IGNORED, Example, whole_sequences
from tests.helpers.training import PAD


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


def test_whole_sequences_predict_answers_only(examples: list[Example]) -> None:
    batch = whole_sequences(examples[:4], PAD)
    for row, example in enumerate(examples[:4]):
        predicted = batch.targets[row][batch.targets[row] != IGNORED]
        assert tuple(predicted.tolist()) == example.target
        at = len(example.prompt_ids) - 1
        assert batch.inputs["input_ids"][row, : at + 1].tolist() == example.prompt_ids.tolist()
        assert batch.inputs["attention_mask"][row].sum() == at + len(example.target)
