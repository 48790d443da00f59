"""What every generated set promises, proved on what is generated."""

from __future__ import annotations

import random
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from scale_export.core.errors import UserError
from scale_export.core.words import Split
from scale_export.questions import load_questions
from scale_export.questions.question import Question, digest
from scale_export.questions.sets import _generated, atlas, gridworld
from scale_export.questions.sets._generated import World

WORLDS: dict[str, World[Any]] = {"gridworld": gridworld.WORLD, "atlas": atlas.WORLD}
SPLITS: tuple[Split, ...] = get_args(Split)
TOPICS = [(name, topic) for name, world in WORLDS.items() for topic in world.topics]
DEVIATIONS = 3.5
"""How many standard deviations above chance an answer guessed from a prompt alone may be right, per topic."""

every_world = pytest.mark.parametrize("name", WORLDS)


@cache
def questions(name: str, split: Split) -> list[Question]:
    return load_questions(name, split)


@cache
def description(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parents[2] / "calib" / name / "set.toml").read_text())


@pytest.mark.parametrize("split", SPLITS)
@every_world
def test_description_holds(name: str, split: Split) -> None:
    """``calib/NAME/set.toml`` states the sizes and the SHA-256 of exactly what is generated."""
    described = description(name)["splits"][split]
    spatial = sum(q.kind == "spatial" for q in questions(name, split))
    assert (len(questions(name, split)), spatial) == (described["questions"], described["spatial"])
    assert digest(questions(name, split)) == described["sha256"]


@every_world
def test_description_names_everything(name: str) -> None:
    described = description(name)
    assert described["name"] == WORLDS[name].name == name
    assert described["seed"] == _generated.DEFAULT_SEED
    assert {topic: WORLDS[name].topics[topic].kind for topic in WORLDS[name].topics} == described["topics"]
    assert set(described["splits"]) == set(SPLITS)


@every_world
def test_test_split_is_large_enough(name: str) -> None:
    counts = Counter(q.kind for q in questions(name, "test"))
    assert counts.total() >= 1536 and counts["spatial"] >= 768


@every_world
def test_two_loads_are_equal_and_another_seed_differs(name: str) -> None:
    first = digest(WORLDS[name].load("seed=3", "validation", 64))
    assert first == digest(WORLDS[name].load("seed=3", "validation", 64))
    assert first != digest(WORLDS[name].load("seed=4", "validation", 64))


@every_world
def test_limit_takes_the_first_questions(name: str) -> None:
    first = [q.id for q in questions(name, "test")[:10]]
    assert [q.id for q in WORLDS[name].load("", "test", 10)] == first
    assert len(WORLDS[name].load("size=12", "test", None)) == 12


@every_world
def test_no_arrangement_or_instance_occurs_in_two_splits(name: str) -> None:
    """Rule 2: neither in the shipped splits nor in the endless supply that training draws from."""
    pictures: dict[bytes, set[str]] = defaultdict(set)
    instances: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for q in questions(name, split):
            assert q.image is not None
            pictures[q.image.tobytes()].add(split)
            instances[q.instance].add(split)
    supply = WORLDS[name].scenes("train", random.Random("another seed"))
    for _ in range(1000):
        pictures[WORLDS[name].render(next(supply)).tobytes()].add("train")
    assert all(len(splits) == 1 for splits in pictures.values())
    assert all(len(splits) == 1 for splits in instances.values())


@every_world
def test_ids_are_unique(name: str) -> None:
    ids = [q.id for split in SPLITS for q in questions(name, split)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("name", "topic"), TOPICS)
def test_answers_are_balanced(name: str, topic: str) -> None:
    """Rule 3: every answer of a topic is as frequent as the next, give or take one."""
    counts = Counter(q.answer for q in questions(name, "test") if q.topic == topic)
    assert set(counts) == set(WORLDS[name].topics[topic].answers)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(("name", "topic"), TOPICS)
def test_text_alone_says_little(name: str, topic: str) -> None:
    """Rule 3: the commonest train answer of each prompt is near chance on the test split."""
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for q in questions(name, "train"):
        usual[q.prompt][q.answer] += 1
    asked = [q for q in questions(name, "test") if q.topic == topic]
    hits = [bool(usual[q.prompt]) and usual[q.prompt].most_common(1)[0][0] == q.answer for q in asked]
    chance = 1 / len(WORLDS[name].topics[topic].answers)
    assert np.mean(hits) <= chance + DEVIATIONS * np.sqrt(chance * (1 - chance) / len(hits))


def test_every_bitmap_differs_from_its_mirror_image() -> None:
    for bitmap in _generated.BITMAPS.values():
        assert len(bitmap) == 8 and {len(line) for line in bitmap} == {8}
        assert bitmap != tuple(line[::-1] for line in bitmap)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sede=7", "did you mean 'seed'"),
        ("seed=x", "whole number"),
        ("seed", "whole number"),
        ("7", "no option '7'"),
    ],
)
@every_world
def test_bad_options_are_refused(name: str, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_questions(f"{name}:{argument}", "test")


@pytest.mark.parametrize("module", [_generated, gridworld, atlas])
def test_modules_need_no_torch(module: Any) -> None:
    text = Path(module.__file__).read_text()
    assert "torch" not in text.replace("torchvision", "")
