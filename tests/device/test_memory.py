"""A second question about the same pictures: nothing runs twice, and its logits are those of a run from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scale_export.backends.onnxruntime.backend import BACKEND as onnxruntime
from scale_export.core.compare import relative_error
from scale_export.core.limits import FOLD_RELATIVE
from scale_export.core.records import Array, Float32
from scale_export.device import memory as memory_module
from scale_export.device.engine import Scalars
from scale_export.device.generation import Generator, Inputs
from scale_export.device.memory import PICTURES, Memory, digest
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.package import Package, open_package
from scale_export.device.prompts import Message, assistant_message, encode_messages, user_message
from tests.helpers.emission import Emit, Emitted, emitting, generator, reference
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture

CPU = ["CPUExecutionProvider"]
ANSWER = (3, 9, 4)
WHERE, LEFT = "where is the circle ?", "is the red circle left of the blue square ? yes no"
WRONG = 100 * FOLD_RELATIVE

QUICK = (
    ("llava", "llama", "gate", "last"),
    ("llava", "llama", "gate", "all"),
    ("llava", "llama", "weights", "all"),
    ("llava", "llama", "two-phase", "last"),
    ("gemma3", "own", "gate", "last"),
    ("paligemma", "llama", "gate", "last"),
    ("qwen2_vl", "own", "gate", "last"),
)
SLOW = (
    ("llava", "mistral-window", "gate", "last"),
    ("qwen3_vl", "own", "gate", "last"),
)
"""Family, text model, fold mode, scope: each kind of attention, of positions, and of what the scalars touch."""
WAYS = [
    *(pytest.param(way, id="-".join(way)) for way in QUICK),
    *(pytest.param(way, id="-".join(way), marks=pytest.mark.slow) for way in SLOW),
]


class Counted:
    """An engine that counts what it runs: pictures, and new tokens of the decoder."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.towers, self.tokens = engine, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def vision(self, inputs: Any) -> Any:
        self.towers += 1
        return self.engine.vision(inputs)

    def forward(self, cache: Any, step: Any, scalars: Any, phase: Any) -> Any:
        self.tokens += step.inputs_embeds.shape[1]
        return self.engine.forward(cache, step, scalars, phase)


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("cpu", onnxruntime, base_of, tmp_path_factory)


def made(emitted: Emit, way: tuple[str, str, str, str]) -> Emitted:
    family, variant, mode, scope = way
    if variant == "llama" and FAMILIES[family].own_text:
        variant = "own"
    return emitted(family, variant, "float32", mode, scope)


def graphs_of(one: Emitted) -> Generator:
    plan, _, graphs = one
    engine = OnnxEngine(graphs, context_length=512, providers=CPU)
    return generator(Counted(engine), plan.base, plan.fold)


def asked(one: Emitted, *turns: str, seed: int = 0) -> Inputs:
    """The inputs of a conversation about one picture: questions, and between them answers."""
    messages: list[Message] = [user_message([picture(seed)], turns[0])]
    for number, text in enumerate(turns[1:], 1):
        messages.append(user_message([], text) if number % 2 == 0 else assistant_message(text))
    return encode_messages(one[0].base.processor, messages)


def remembered(
    memory: Memory, answering: Generator, inputs: Inputs, tokens: Sequence[int] = ANSWER
) -> Float32:
    with memory.start(answering, inputs) as start:
        return np.stack([start.logits[0], *(answering.follow(start, token)[0] for token in tokens)])


def worst(memory: Memory, answering: Generator, prompts: Sequence[Inputs]) -> float:
    """Of prompts one after the other: logits by the memory against those from nothing."""
    errors = [
        relative_error(answering.forced_logits(inputs, ANSWER), remembered(memory, answering, inputs))
        for inputs in prompts
    ]
    return max(errors)


def prompts_of(one: Emitted) -> list[Inputs]:
    """One question after the other, each of which shares something else with the one before it."""
    said = one[0].base.processor.tokenizer.decode(ANSWER)
    return [
        asked(one, WHERE),
        asked(one, LEFT),
        asked(one, LEFT, said, WHERE),
        asked(one, LEFT, said, WHERE, said, LEFT),
        asked(one, LEFT, said, WHERE, said, LEFT),  # the very same
        asked(one, LEFT),  # less than what is kept
        asked(one, LEFT, seed=1),  # another picture of the same size
        asked(one, WHERE, seed=1),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_a_run_from_nothing(emitted: Emit, way: tuple[str, str, str, str]):
    one = made(emitted, way)
    prompts = prompts_of(one)
    for answering in (graphs_of(one), reference(one[0], one[1])):
        assert worst(Memory(scope=way[3]), answering, prompts) <= FOLD_RELATIVE  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_neither_the_tower_nor_a_shared_beginning_runs_again(emitted: Emit, way: tuple[str, str, str, str]):
    one = made(emitted, way)
    answering, memory = graphs_of(one), Memory(scope=way[3])  # type: ignore[arg-type]
    counts: Any = answering.engine
    first, second = asked(one, WHERE), asked(one, LEFT)
    remembered(memory, answering, first, ())
    before = counts.tokens
    assert (counts.towers, before) == (1, first["input_ids"].shape[1])
    remembered(memory, answering, second, ())
    ran = counts.tokens - before
    assert counts.towers == 1
    ids, total = [inputs["input_ids"][0] for inputs in (first, second)], second["input_ids"].shape[1]
    same = int((ids[0][:total] == ids[1][: len(ids[0])]).argmin())
    assert ran == (total if one[0].base.family.prompt_sees_itself else total - same)


@pytest.mark.parametrize(("scope", "mode"), [("all", "weights"), ("all", "gate"), ("last", "gate")])
def test_answers_are_kept_where_they_carry_what_prompts_carry(emitted: Emit, scope: Any, mode: str):
    one = made(emitted, ("llava", "llama", mode, scope))
    answering, memory = graphs_of(one), Memory(scope=scope)
    counts: Any = answering.engine
    inputs = asked(one, WHERE)
    grown = {**inputs, "input_ids": np.concatenate((inputs["input_ids"], [[*ANSWER, 7, 6]]), axis=1)}
    remembered(memory, answering, inputs)
    before = counts.tokens
    found = remembered(memory, answering, grown, ())
    again = 0 if scope == "all" else 1 + len(ANSWER)  # the prompt's last token, and what followed it
    assert counts.tokens - before == again + 2
    assert relative_error(answering.forced_logits(grown, ()), found) <= FOLD_RELATIVE


def test_strengths_share_what_no_scalar_touched(emitted: Emit):
    for scope in ("last", "all"):
        one = made(emitted, ("llava", "llama", "gate", scope))
        answering, memory = graphs_of(one), Memory(scope=scope)  # type: ignore[arg-type]
        counts: Any = answering.engine
        inputs, (attn, mlp) = asked(one, WHERE), one[1].dense()
        remembered(memory, answering, inputs)
        answering.scalars = Scalars(attn=attn, mlp=mlp).at(0.5)
        before = counts.tokens
        found = remembered(memory, answering, inputs, ())
        assert counts.tokens - before == (1 if scope == "last" else inputs["input_ids"].shape[1])
        assert relative_error(answering.forced_logits(inputs, ()), found) <= FOLD_RELATIVE


# What must not pass.


@pytest.fixture
def gated(emitted: Emit) -> Emitted:
    return made(emitted, QUICK[0])


def test_a_stale_beginning_shows(gated: Emitted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_module, "shared", lambda kept, prompt: min(kept.usable, prompt.tokens - 1))
    assert worst(Memory(scope="last"), graphs_of(gated), prompts_of(gated)[:2]) > WRONG


def test_another_picture_of_the_same_size_shows(gated: Emitted, monkeypatch: pytest.MonkeyPatch):
    pair = [asked(gated, WHERE), asked(gated, WHERE, seed=1)]
    monkeypatch.setattr(
        memory_module, "digest", lambda tower: str({name: value.shape for name, value in tower.items()})
    )
    assert worst(Memory(scope="last"), graphs_of(gated), pair) > WRONG
    monkeypatch.undo()

    def by_place(one: Any, other: Any, count: int) -> Any:
        return np.all(one.positions[..., :count] == other.positions[..., :count], axis=0)

    monkeypatch.setattr(memory_module, "_same_inputs", by_place)
    assert worst(Memory(scope="last"), graphs_of(gated), pair) > WRONG


@pytest.mark.parametrize("way", [QUICK[0], QUICK[3]], ids="-".join)
def test_a_slot_that_carried_the_scalars_shows(emitted: Emit, way: tuple[str, str, str, str]):
    """A prompt's last token and its answer, taken for tokens within a longer prompt."""
    one = made(emitted, way)
    inputs = asked(one, WHERE)
    grown = {**inputs, "input_ids": np.concatenate((inputs["input_ids"], [[*ANSWER, 7, 6]]), axis=1)}
    assert worst(Memory(scope="last"), graphs_of(one), [inputs, grown]) <= FOLD_RELATIVE
    assert worst(Memory(scope="all"), graphs_of(one), [inputs, grown]) > WRONG


def test_tokens_under_other_scalars_show(emitted: Emit, monkeypatch: pytest.MonkeyPatch):
    one = made(emitted, QUICK[1])
    answering, memory, inputs = graphs_of(one), Memory(scope="all"), asked(one, WHERE)
    monkeypatch.setattr(memory_module, "_same", lambda one, other: True)
    remembered(memory, answering, inputs)
    attn, mlp = one[1].dense()
    answering.scalars = Scalars(attn=attn, mlp=mlp).at(0)
    assert (
        relative_error(answering.forced_logits(inputs, ()), remembered(memory, answering, inputs, ())) > WRONG
    )


def test_a_group_that_is_cut_shows(emitted: Emit, monkeypatch: pytest.MonkeyPatch):
    one = made(emitted, ("paligemma", "llama", "gate", "last"))
    monkeypatch.setattr(memory_module, "_cuts_a_group", lambda group, place: False)
    assert worst(Memory(scope="last"), graphs_of(one), prompts_of(one)[:2]) > WRONG


def test_the_hash_tells_names_shapes_types_and_values():
    ones = np.ones((2, 3), np.float32)
    tower: dict[str, Array] = {"pixel_values": ones, "cos": ones}
    others: list[dict[str, Array]] = [
        {"pixel_values": ones},
        {**tower, "cos": ones.reshape(3, 2)},
        {**tower, "cos": ones.view(np.int32)},
        {**tower, "cos": ones * 2},
        {"pixel_values": ones, "sin": ones},
    ]
    assert digest(dict(reversed(tower.items()))) == digest(tower)
    assert len({digest(tower), *map(digest, others)}) == 1 + len(others)


# Through the user's door.


def counted(package: Package) -> Counted:
    package.ready()
    counts = Counted(package.engine)
    package.generator.engine = counts  # type: ignore[assignment]
    return counts


def test_a_package_answers_as_one_that_was_just_opened(package: Any):
    opened, questions = open_package(package, threads=1), (WHERE, LEFT, WHERE, LEFT + " ?")
    counts = counted(opened)
    for question in questions:
        fresh = open_package(package, threads=1).answer([picture()], question, max_new_tokens=4)
        assert opened.answer([picture()], question, max_new_tokens=4) == fresh
    assert counts.towers == 1


def test_pictures_ahead_of_the_question(package: Any):
    opened = open_package(package, threads=1)
    counts, asked = counted(opened), opened.prepare([picture()], LEFT)
    opened.prefill([picture()])
    before = counts.tokens
    answer = opened.answer([picture()], LEFT, max_new_tokens=1)
    assert answer == open_package(package, threads=1).answer([picture()], LEFT, max_new_tokens=1)
    assert counts.towers == 1
    first = int((asked["input_ids"][0] == opened.files.manifest.image_token_id).nonzero()[0][-1]) + 1
    assert counts.tokens - before == asked["input_ids"].shape[1] - first


def test_answers_that_are_read_in_turn_do_not_share_a_cache(package: Any):
    opened = open_package(package, threads=1)
    asked = [opened.prepare([picture()], question) for question in (WHERE, LEFT)]
    streams = [
        opened.generator.stream(
            inputs,
            max_new_tokens=6,
            rules=replace(opened.responder.rules, end_tokens=()),
            starting=opened._memory.start,
        )
        for inputs in asked
    ]
    found: list[list[int]] = [[], []]
    for _ in range(6):
        for tokens, stream in zip(found, streams, strict=True):
            tokens.append(next(stream))
    for inputs, tokens in zip(asked, found, strict=True):
        alone = opened.generator.stream(
            inputs, max_new_tokens=6, rules=replace(opened.responder.rules, end_tokens=())
        )
        assert list(alone) == tokens


def test_a_run_that_fails_keeps_nothing(package: Any, monkeypatch: pytest.MonkeyPatch):
    opened = open_package(package, threads=1)
    counts = counted(opened)
    opened.answer([picture()], WHERE, max_new_tokens=1)
    inputs = opened.prepare([picture()], WHERE)
    with pytest.raises(KeyError), opened._memory.start(opened.generator, inputs):
        raise KeyError
    before = counts.tokens
    opened.answer([picture()], WHERE, max_new_tokens=1)
    assert counts.tokens - before == inputs["input_ids"].shape[1]


def test_what_is_kept_is_bounded_and_can_be_forgotten(package: Any):
    opened = open_package(package, threads=1)
    counts = counted(opened)
    for seed in range(PICTURES + 1):
        opened.answer([picture(seed)], WHERE, max_new_tokens=1)
    assert counts.towers == PICTURES + 1
    opened.answer([picture(1)], WHERE, max_new_tokens=1)
    assert counts.towers == PICTURES + 1
    opened.answer([picture(0)], WHERE, max_new_tokens=1)  # the oldest is gone
    assert counts.towers == PICTURES + 2
    opened.forget()
    before = counts.tokens
    opened.answer([picture(0)], WHERE, max_new_tokens=1)
    assert counts.towers == PICTURES + 3
    assert counts.tokens - before == opened.prepare([picture(0)], WHERE)["input_ids"].shape[1]
