"""The grid world: what its description promises, proved on what is generated."""

from __future__ import annotations

import random
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, ImageOps

from scale_export.datasets import Question, Split, digest, gridworld, load_questions
from scale_export.errors import UserError

SPLITS: tuple[Split, ...] = get_args(Split)
DESCRIPTION: dict[str, Any] = tomllib.loads(
    (Path(__file__).parents[2] / "calib" / "gridworld" / "set.toml").read_text()
)
DEVIATIONS = 3.5
"""How many standard deviations above chance an answer guessed from a prompt alone may be right, per topic."""


@cache
def questions(split: Split) -> list[Question]:
    return load_questions("gridworld", split)


def seen(image: Image.Image) -> dict[str, tuple[int, int, str]]:
    """Shape → (row, column, colour), read off the pixels alone, cell by cell."""
    dot = gridworld.TILE // 2 - 4 * gridworld.ENLARGE
    found: dict[str, tuple[int, int, str]] = {}
    pixels = np.asarray(image)
    for row in range(3):
        for column in range(3):
            cell = pixels[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            dots = cell[dot : dot + 24 : 3, dot : dot + 24 : 3]
            filled = (dots != gridworld.BACKGROUND).any(-1)
            if not filled.any():
                continue
            lines = tuple("".join(".#"[int(value)] for value in line) for line in filled)
            shape = next(name for name, bitmap in gridworld.BITMAPS.items() if bitmap == lines)
            colour = next(n for n, rgb in gridworld.COLOURS.items() if tuple(dots[filled][0]) == rgb)
            assert shape not in found
            found[shape] = (row, column, colour)
    return found


def arrangement(image: Image.Image) -> frozenset[tuple[str, tuple[int, int, str]]]:
    return frozenset(seen(image).items())


def answer_from_pixels(prompt: str, image: Image.Image) -> str:  # noqa: PLR0911 - one per wording
    """The answer, worked out from the picture and the words without the generator's scene or code."""
    things = seen(image)
    words = prompt.rstrip("?").split()
    rows, columns = ("top", "middle", "bottom"), ("left", "middle", "right")
    match words:
        case ["is", "the", a, "left", "or", "right", "of", "the", b]:
            assert things[a][1] != things[b][1]
            return "left" if things[a][1] < things[b][1] else "right"
        case ["is", "the", a, "above", "or", "below", "the", b]:
            assert things[a][0] != things[b][0]
            return "above" if things[a][0] < things[b][0] else "below"
        case ["which", "row", "is", "the", a, "in"]:
            return f"{rows[things[a][0]]} row"
        case ["which", "column", "is", "the", a, "in"]:
            return f"{columns[things[a][1]]} column"
        case ["where", "is", "the", a]:
            return f"{rows[things[a][0]]} {columns[things[a][1]]}"
        case ["which", "object", "is", "at", "the", row, column]:
            [a] = [n for n, at in things.items() if at[:2] == (rows.index(row), columns.index(column))]
            return f"the {a}"
        case ["which", "object", "is", "just", *way, "the", b]:
            steps = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
            down, right = steps[" ".join(way)]
            [a] = [n for n, at in things.items() if at[:2] == (things[b][0] + down, things[b][1] + right)]
            return f"the {a}"
        case ["what", "colour", "is", "the", a]:
            return things[a][2]
        case ["how", "many", "objects", "are", "there"]:
            return {3: "three", 4: "four", 5: "five"}[len(things)] + " objects"
        case ["is", "there", "a", a]:
            return "yes" if a in things else "no"
    raise AssertionError(f"a question nobody knows how to check: {prompt!r}")


@pytest.mark.parametrize("split", SPLITS)
def test_description_holds(split: Split) -> None:
    """``calib/gridworld/set.toml`` states the sizes and the SHA-256 of exactly what is generated."""
    described = DESCRIPTION["splits"][split]
    spatial = sum(q.kind == "spatial" for q in questions(split))
    assert (len(questions(split)), spatial) == (described["questions"], described["spatial"])
    assert digest(questions(split)) == described["sha256"]


def test_description_names_everything() -> None:
    assert DESCRIPTION["seed"] == gridworld.DEFAULT_SEED
    assert {name: topic.kind for name, topic in gridworld.TOPICS.items()} == DESCRIPTION["topics"]
    assert set(DESCRIPTION["splits"]) == set(SPLITS)


def test_test_split_is_large_enough() -> None:
    counts = Counter(q.kind for q in questions("test"))
    assert counts.total() >= 1536 and counts["spatial"] >= 768


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_pixels(split: Split) -> None:
    for q in questions(split):
        assert q.image is not None
        assert q.answer == answer_from_pixels(q.prompt, q.image), q.id


def test_two_loads_are_equal_and_another_seed_differs() -> None:
    first = digest(gridworld.load("seed=3", "validation", 64))
    assert first == digest(gridworld.load("seed=3", "validation", 64))
    assert first != digest(gridworld.load("seed=4", "validation", 64))


def test_limit_takes_the_first_questions() -> None:
    assert [q.id for q in gridworld.load("", "test", 10)] == [q.id for q in questions("test")[:10]]
    assert len(gridworld.load("size=12", "test", None)) == 12


def test_no_arrangement_or_instance_occurs_in_two_splits() -> None:
    """Rule 2: neither in the shipped splits nor in the endless supply that training draws from."""
    scenes: dict[object, set[str]] = defaultdict(set)
    instances: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for q in questions(split):
            assert q.image is not None
            scenes[arrangement(q.image)].add(split)
            instances[q.instance].add(split)
    supply = gridworld.scenes("train", random.Random("another seed"))
    for _ in range(2000):
        scenes[arrangement(gridworld.render(next(supply)))].add("train")
    assert all(len(splits) == 1 for splits in scenes.values())
    assert all(len(splits) == 1 for splits in instances.values())


def test_ids_are_unique() -> None:
    ids = [q.id for split in SPLITS for q in questions(split)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("topic", gridworld.TOPICS)
def test_answers_are_balanced(topic: str) -> None:
    """Rule 3: every answer of a topic is as frequent as the next, give or take one."""
    counts = Counter(q.answer for q in questions("test") if q.topic == topic)
    assert set(counts) == set(gridworld.TOPICS[topic].answers)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("topic", gridworld.TOPICS)
def test_text_alone_says_little(topic: str) -> None:
    """Rule 3: the commonest train answer of each prompt is near chance on the test split."""
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for q in questions("train"):
        usual[q.prompt][q.answer] += 1
    asked = [q for q in questions("test") if q.topic == topic]
    hits = [bool(usual[q.prompt]) and usual[q.prompt].most_common(1)[0][0] == q.answer for q in asked]
    chance = 1 / len(gridworld.TOPICS[topic].answers)
    assert np.mean(hits) <= chance + DEVIATIONS * np.sqrt(chance * (1 - chance) / len(hits))


def test_a_mirrored_picture_has_other_answers() -> None:
    """Rule 4."""
    for q in questions("test"):
        assert q.image is not None
        assert ImageOps.mirror(q.image).tobytes() != q.image.tobytes()
    rng = random.Random("mirror")
    for _ in range(200):
        scene = gridworld.draw_scene(rng)
        assert scene.mirrored() != scene
        turned = {a.prompt: a.answer for a in gridworld.TOPICS["left_right"].ask(scene.mirrored())}
        for asked in gridworld.TOPICS["left_right"].ask(scene):
            assert {asked.answer, turned[asked.prompt]} == {"left", "right"}


def test_every_bitmap_differs_from_its_mirror_image() -> None:
    for bitmap in gridworld.BITMAPS.values():
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
def test_bad_options_are_refused(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_questions(f"gridworld:{argument}", "test")


def test_module_needs_no_torch() -> None:
    text = Path(gridworld.__file__).read_text()
    assert "torch" not in text.replace("torchvision", "")
