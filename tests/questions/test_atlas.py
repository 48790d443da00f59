"""The atlas: every answer follows from the pixels; ``test_generated.py`` has what all generated sets promise."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from scale_export.core.words import Split
from scale_export.questions import load_questions
from scale_export.questions.sets import atlas

Tile = tuple[str, str]
"""Name and colour."""

NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
WAYS = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}


@cache
def _named() -> dict[tuple[str, ...], str]:
    bitmaps = {bitmap: name for name, bitmap in atlas.BITMAPS.items()}
    return bitmaps | {bitmap: name for name, (bitmap, _) in atlas.GROUND.items()}


def seen(image: Image.Image) -> dict[tuple[int, int], Tile]:
    """What each tile that isn't empty shows, read off the pixels alone."""
    found = {}
    dots = np.asarray(image)[::2, ::2]
    assert (np.repeat(np.repeat(dots, 2, 0), 2, 1) == np.asarray(image)).all()
    for row in range(6):
        for column in range(6):
            tile = dots[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            filled = (tile != (236, 236, 232)).any(-1)
            if filled.any():
                lines = tuple("".join(".#"[int(value)] for value in line) for line in filled)
                colours = {rgb: name for name, rgb in atlas.COLOURS.items()}
                found[row, column] = (_named()[lines], colours.get(tuple(map(int, tile[filled][0])), ""))
    return found


def walked(tiles: dict[tuple[int, int], Tile]) -> list[str]:
    """The moves of a maze's path from its start to its exit, found from tile to tile."""
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    names = {cell: name for cell, (name, _) in tiles.items()}
    [here] = [cell for cell, name in names.items() if name == "start"]
    moves: list[str] = []
    while names[here] != "exit":
        # From a piece, on through the side that it wasn't entered by; from the start, where a piece (or the exit,
        # were it next door) opens toward it.
        ways = [way for way in names[here].split() if not moves or way != opposite[moves[-1]]]
        if names[here] == "start":
            ways = [
                way
                for way, (down, right) in WAYS.items()
                if opposite[way] in names.get((here[0] + down, here[1] + right), "").split()
            ]
        [way] = ways
        moves.append(way)
        here = (here[0] + WAYS[way][0], here[1] + WAYS[way][1])
        assert len(moves) < 36
    return moves


def lies(of: tuple[int, int], seen_from: tuple[int, int]) -> set[str]:
    down, right = of[0] - seen_from[0], of[1] - seen_from[1]
    chosen = {"north": down < 0, "south": down > 0, "east": right > 0, "west": right < 0}
    return {way for way, holds in chosen.items() if holds}


def answer_from_pixels(prompt: str, image: Image.Image) -> str:  # noqa: PLR0911 - one per wording
    """The answer, worked out from the picture and the words without the generator's scene or code."""
    tiles = seen(image)
    where = {
        name: [cell for cell, (other, _) in tiles.items() if other == name] for name, _ in tiles.values()
    }
    objects = [name for name in where if name in atlas.BITMAPS]
    match prompt.rstrip("?").split():
        case ["in", "which", "direction", "is", "the", a, "from", "the", b]:
            [[of], [here]] = where[a], where[b]
            return " ".join(way for way in WAYS if way in lies(of, here))
        case ["which", "object", "is", up, side, "of", "the", a]:
            [here] = where[a]
            [found] = [name for name in objects for cell in where[name] if lies(cell, here) == {up, side}]
            return f"the {found}"
        case ["how", "many", "objects", "are", way, "of", "the", a]:
            [here] = where[a]
            return NUMBERS[sum(way in lies(cell, here) for name in objects for cell in where[name])]
        case ["which", "object", "is", "in", "row", row, "and", "column", column]:
            return f"the {tiles[NUMBERS.index(row) - 1, NUMBERS.index(column) - 1][0]}"
        case ["how", "many", "cells", "of", line, number, "hold", "a", a]:
            axis = ("row", "column").index(line)
            return NUMBERS[sum(cell[axis] == NUMBERS.index(number) - 1 for cell in where[a])]
        case ["in", "which", "direction", "does", "the", "path", "leave", "the", "start"]:
            return walked(tiles)[0]
        case ["how", "many", "turns", "does", "the", "path", "take"]:
            return NUMBERS[sum(a != b for a, b in pairwise(walked(tiles)))]
        case ["what", "colour", "is", "the", a]:
            [colour] = {tiles[cell][1] for cell in where[a]}
            return colour
        case ["how", "many", "kinds", "of", "object", "are", "there"]:
            return f"{NUMBERS[len(objects)]} kinds"
        case ["is", "there", "a", a]:
            return "yes" if a in where else "no"
    raise AssertionError(f"a question nobody knows how to check: {prompt!r}")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_answers_follow_from_the_pixels(split: Split) -> None:
    asked = load_questions("atlas", split, limit=160)
    assert {q.topic for q in asked} == set(atlas.TOPICS)
    for q in asked:
        assert q.image is not None
        assert q.answer == answer_from_pixels(q.prompt, q.image), q.id


def test_every_view_is_asked_everything_else() -> None:
    """Colours, kinds and presence can be asked of maps, grids and mazes alike."""
    rng = random.Random("views")
    views = set()
    for _ in range(60):
        scene = atlas.draw_scene(rng)
        views.add(scene.view)
        assert all(atlas.TOPICS[name].ask(scene) for name in atlas.WORLD.topics_of("other"))
    assert views == set(atlas.VIEWS)


def test_paths_never_touch_themselves() -> None:
    rng = random.Random("paths")
    for _ in range(30):
        path = next(s for s in iter(lambda: atlas.draw_scene(rng), None) if s.path).path
        beside = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a in path for b in path)
        assert len(set(path)) == len(path) and beside == 2 * (len(path) - 1)
