"""The grid world's own promises; ``test_generated.py`` has those of all generated sets."""

from __future__ import annotations

import random
from functools import cache
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageOps

from scale_export.core.words import Split
from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.questions.sets import gridworld

SPLITS: tuple[Split, ...] = get_args(Split)


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
def test_answers_follow_from_the_pixels(split: Split) -> None:
    for q in questions(split):
        assert q.image is not None
        assert q.answer == answer_from_pixels(q.prompt, q.image), q.id


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
