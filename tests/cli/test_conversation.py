"""A conversation on the terminal: the end of the context, questions that are refused, turns that are dropped."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError, open_package
from scale_export.cli.conversation import Conversation
from scale_export.core.errors import ContextFull
from scale_export.device.package import Package
from scale_export.device.rules import GenerationRules
from tests.helpers.cli import last_json, run
from tests.helpers.pictures import picture

CONTEXT = 512
WHERE = "where is the circle ?"

Type = Callable[..., None]


@pytest.fixture
def endless(package: Path) -> Package:
    """A package whose answers no token ends."""
    opened = open_package(package, threads=1)
    vars(opened)["responder"] = replace(opened.responder, rules=GenerationRules())
    return opened


@pytest.fixture
def type_lines(monkeypatch: pytest.MonkeyPatch) -> Type:
    """``type_lines(*lines)``: what the user will type; the input ends after it."""

    def type_lines(*lines: str) -> None:
        left = iter(lines)

        def typed(prompt: str = "") -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", typed)

    return type_lines


def tokens_of(package: Package, question: str) -> int:
    return int(package.prepare([], question)["input_ids"].shape[1])


def question_of(package: Package, tokens: int) -> str:
    """A question whose prompt has so many tokens."""
    text = "?" + " ?" * (tokens - tokens_of(package, "?"))
    assert tokens_of(package, text) == tokens
    return text


def conversation(package: Package, **options: Any) -> Conversation:
    chosen = {"pictures": [], "max_new_tokens": 4, "as_json": True, **options}
    return Conversation(package=package, **chosen)


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("free", "count", "stopped"), [(0, 1, "context"), (2, 3, "context"), (3, 4, "length")]
)
def test_an_answer_stops_at_the_end_of_the_context(endless: Package, free: int, count: int, stopped: str):
    """The last token that is answered needs no slot: nothing follows it."""
    inputs = endless.prepare([], question_of(endless, CONTEXT - free))
    tokens = endless.generator.stream(inputs, max_new_tokens=4, rules=GenerationRules())
    found = []
    with pytest.raises(StopIteration) as end:
        while True:
            found.append(next(tokens))
    assert (len(found), end.value.value) == (count, stopped)
    stream = endless.stream(inputs, max_new_tokens=4)
    assert stream.stopped is None
    text = endless.processor.tokenizer.decode(found, skip_special_tokens=True)
    assert ("".join(stream), stream.stopped) == (text, stopped)


def test_an_answer_that_the_model_ends_says_so(endless: Package):
    inputs = endless.prepare([], WHERE)
    first = next(endless.generator.stream(inputs, max_new_tokens=1, rules=GenerationRules()))
    vars(endless)["responder"] = replace(endless.responder, rules=GenerationRules(end_tokens=(first,)))
    stream = endless.stream(inputs, max_new_tokens=4)
    assert (list(stream), stream.stopped) == ([""], "end")


def test_a_prompt_beyond_the_context_is_refused(endless: Package):
    with pytest.raises(ContextFull, match="513 tokens do not fit the package's context of 512"):
        endless.answer([], question_of(endless, CONTEXT + 1))


def test_the_command_says_why_an_answer_stopped(package: Path, capsys: Any):
    question = question_of(open_package(package), CONTEXT)
    asked = ["run", str(package), "--prompt", question, "--max-new-tokens", "3"]
    assert run(*asked, "--json") == 0
    found = last_json(capsys)
    assert found["prompt"] == question and found["stopped"] == "context"
    assert run(*asked[:2], "--prompt", WHERE, "--max-new-tokens", "1", "--json") == 0
    assert last_json(capsys)["stopped"] == "length"


def test_a_full_context_is_said_under_the_answer(endless: Package, capsys: pytest.CaptureFixture[str]):
    conversation(endless, as_json=False).ask(question_of(endless, CONTEXT))
    assert "context of 512 tokens is full, and the answer stops here" in capsys.readouterr().err
    conversation(endless, as_json=False).ask(WHERE)
    assert not capsys.readouterr().err


def test_a_chat_drops_its_oldest_turns_and_keeps_the_pictures(
    endless: Package, type_lines: Type, capsys: pytest.CaptureFixture[str]
):
    third = question_of(endless, 300)
    type_lines(question_of(endless, 200), third, "yes", "")
    chat = conversation(endless, pictures=[picture()])
    chat.go_on(WHERE)
    rows = printed(capsys)
    assert [row.get("prompt") for row in rows] == [WHERE, rows[1]["prompt"], None, third]
    assert "do not fit" in rows[2]["error"] and rows[3]["stopped"] == "length"
    assert [question for question, _ in chat.turns] == [third], "both had to go"
    inputs = endless.prepare([picture()], third)
    assert rows[3]["answer"] == "".join(endless.stream(inputs, max_new_tokens=4)).strip()


def test_a_chat_keeps_its_turns_where_the_user_says_no(
    endless: Package, type_lines: Type, capsys: pytest.CaptureFixture[str]
):
    type_lines(question_of(endless, 505), "n", "and the square ?", "")
    chat = conversation(endless)
    chat.go_on(WHERE)
    assert [question for question, _ in chat.turns] == [WHERE, "and the square ?"]
    assert [sorted(row) for row in printed(capsys)][1] == ["error"]


def test_a_refused_question_does_not_end_a_chat(
    endless: Package, type_lines: Type, capsys: pytest.CaptureFixture[str]
):
    type_lines("what is <image> ?", question_of(endless, CONTEXT + 1), WHERE)
    conversation(endless).go_on(None)
    refused, long, answered = printed(capsys)
    assert "cannot hold '<image>'" in refused["error"] and "do not fit" in long["error"]
    assert answered["prompt"] == WHERE


def test_one_question_that_is_refused_ends_the_command(package: Path, capsys: Any):
    assert run("run", str(package), "--prompt", "what is <image> ?", "--json") == 2
    assert "cannot hold '<image>'" in last_json(capsys)["error"]
    with pytest.raises(UserError, match="cannot hold '<image>'"):
        open_package(package).answer([], "what is <image> ?")
