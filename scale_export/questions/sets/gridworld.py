"""The grid world: pictures of three to five coloured things on a 3×3 grid, with spatial and other questions.

A generated set (``_generated`` has the rules of all such sets), with one rule of its own: no scene is its own mirror
image, and left and right are asked for by name, so that a flipped picture has other answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import _generated
from ._generated import (
    BACKGROUND,
    BITMAPS,
    COLOURS,
    DEFAULT_SEED,
    SHAPES,
    SIZES,
    Asked,
    Topic,
    World,
    pick,
    shuffled,
)

__all__ = [
    "BACKGROUND",
    "BITMAPS",
    "COLOURS",
    "DEFAULT_SEED",
    "SHAPES",
    "SIZES",
    "TOPICS",
    "WORLD",
    "Asked",
    "Scene",
    "Thing",
    "ask",
    "draw_scene",
    "load",
    "pick",
    "render",
    "scenes",
    "shuffled",
    "split_of",
    "topics_of",
]

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
COUNTS: Mapping[int, str] = {3: "three", 4: "four", 5: "five"}

TILE = 32
"""Pixels of a cell's side; a picture has 3 × 3 cells."""
ENLARGE = 3
"""Pixels of a bitmap dot's side: 8 dots fill 24 pixels, which leaves a margin of 4 around each thing."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One thing in a cell; row 0 is the top, column 0 the left."""

    row: int
    column: int
    shape: str
    colour: str

    @property
    def place(self) -> str:
        """``top left``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order; shapes and cells are unique, colours need not be."""

    things: tuple[Thing, ...]

    def describe(self) -> str:
        """The canonical description: equal for equal arrangements only."""
        return ";".join(f"{t.row}{t.column}:{t.colour} {t.shape}" for t in self.things)

    def mirrored(self) -> Scene:
        """The scene whose columns are swapped left to right."""
        return Scene(tuple(sorted(Thing(t.row, 2 - t.column, t.shape, t.colour) for t in self.things)))


def draw_scene(rng: random.Random) -> Scene:
    """A scene of three to five things, of any split, that differs from its mirror image."""
    while True:
        cells = shuffled(rng, range(9))[: pick(rng, tuple(COUNTS))]
        shapes = shuffled(rng, SHAPES)
        colours = tuple(COLOURS)
        placed = sorted(zip(cells, shapes, strict=False))
        scene = Scene(tuple(Thing(cell // 3, cell % 3, shape, pick(rng, colours)) for cell, shape in placed))
        if scene.mirrored() != scene:
            return scene


@cache
def tile(shape: str, colour: str) -> NDArray[np.uint8]:
    """The picture of a thing in its cell, ``[32, 32, 3]``."""
    return _generated.enlarged(BITMAPS[shape], COLOURS[colour], enlarge=ENLARGE, side=TILE)


def render(scene: Scene) -> Image.Image:
    """The scene's picture, 96 × 96 RGB."""
    tiles = {(t.row, t.column): tile(t.shape, t.colour) for t in scene.things}
    return _generated.assembled(tiles, 3, TILE)


def _left_right(scene: Scene) -> list[Asked]:
    return [
        Asked(f"is the {a.shape} left or right of the {b.shape}?", "left" if a.column < b.column else "right")
        for a, b in permutations(scene.things, 2)
        if a.column != b.column
    ]


def _above_below(scene: Scene) -> list[Asked]:
    return [
        Asked(f"is the {a.shape} above or below the {b.shape}?", "above" if a.row < b.row else "below")
        for a, b in permutations(scene.things, 2)
        if a.row != b.row
    ]


def _row(scene: Scene) -> list[Asked]:
    return [Asked(f"which row is the {t.shape} in?", f"{ROWS[t.row]} row") for t in scene.things]


def _column(scene: Scene) -> list[Asked]:
    return [Asked(f"which column is the {t.shape} in?", f"{COLUMNS[t.column]} column") for t in scene.things]


def _place(scene: Scene) -> list[Asked]:
    return [Asked(f"where is the {t.shape}?", t.place) for t in scene.things]


def _at(scene: Scene) -> list[Asked]:
    return [Asked(f"which object is at the {t.place}?", f"the {t.shape}") for t in scene.things]


_STEPS: Mapping[tuple[int, int], str] = {
    (0, 1): "left of",
    (0, -1): "right of",
    (1, 0): "above",
    (-1, 0): "below",
}
"""(row, column) of the asked thing minus those of the answer → how the answer lies."""


def _beside(scene: Scene) -> list[Asked]:
    return [
        Asked(f"which object is just {_STEPS[step]} the {b.shape}?", f"the {a.shape}")
        for a, b in permutations(scene.things, 2)
        if (step := (b.row - a.row, b.column - a.column)) in _STEPS
    ]


def _colour(scene: Scene) -> list[Asked]:
    return [Asked(f"what colour is the {t.shape}?", t.colour) for t in scene.things]


def _count(scene: Scene) -> list[Asked]:
    return [Asked("how many objects are there?", f"{COUNTS[len(scene.things)]} objects")]


def _presence(scene: Scene) -> list[Asked]:
    present = {t.shape for t in scene.things}
    return [Asked(f"is there a {shape}?", "yes" if shape in present else "no") for shape in SHAPES]


_THINGS = tuple(f"the {shape}" for shape in SHAPES)
TOPICS: Mapping[str, Topic[Scene]] = {
    "left_right": Topic("spatial", ("left", "right"), _left_right),
    "above_below": Topic("spatial", ("above", "below"), _above_below),
    "row": Topic("spatial", tuple(f"{row} row" for row in ROWS), _row),
    "column": Topic("spatial", tuple(f"{column} column" for column in COLUMNS), _column),
    "place": Topic("spatial", tuple(f"{row} {column}" for row in ROWS for column in COLUMNS), _place),
    "at": Topic("spatial", _THINGS, _at),
    "beside": Topic("spatial", _THINGS, _beside),
    "colour": Topic("other", tuple(COLOURS), _colour),
    "count": Topic("other", tuple(f"{count} objects" for count in COUNTS.values()), _count),
    "presence": Topic("other", ("yes", "no"), _presence),
}


WORLD = World(name="gridworld", topics=TOPICS, draw=draw_scene, render=render)
split_of, scenes, topics_of, ask, load = (
    WORLD.split_of,
    WORLD.scenes,
    WORLD.topics_of,
    WORLD.ask,
    WORLD.load,
)
