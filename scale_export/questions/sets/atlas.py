"""The atlas: maps, grids and mazes on a field of 6 × 6 tiles, after SpatialEval's three drawn tasks.

A map has three to five landmarks; a grid is full of things, each kind in one colour; in a maze a path leads through
walls from a start to an exit, past a few things that lie about. North is up; row one is at the top, column one at the
left. A generated set: ``_generated`` has the rules of all such sets.

The other questions (colours, presence, kinds) are the same for all three, so that each pair of questions can be dealt
for each of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._generated import BITMAPS, COLOURS, SHAPES, Asked, Topic, World, assembled, enlarged, pick, shuffled

View = Literal["map", "grid", "maze"]
VIEWS: tuple[View, ...] = get_args(View)

SIDE = 6
"""Tiles of the field's side."""
TILE = 16
"""Pixels of a tile's side: one patch of a vision tower that takes 16."""
NUMBERS = ("one", "two", "three", "four", "five", "six")
COUNTS = ("none", *NUMBERS)
KINDS = (3, 4, 5)
"""How many kinds of object a scene holds."""
TURNS = (1, 2, 3, 4)
WALLS = 0.8
"""The share of a maze's free tiles that are walls."""

Cell = tuple[int, int]
"""(row, column), from 0."""

STEPS: Mapping[str, Cell] = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}
DIRECTIONS = (
    "north",
    "north east",
    "east",
    "south east",
    "south",
    "south west",
    "west",
    "north west",
)


def _line(ways: tuple[str, ...]) -> tuple[str, ...]:
    """The bitmap of a path that leaves a tile by these sides."""
    dots = np.zeros((8, 8), np.bool_)
    dots[3:5, 3:5] = True
    for way in ways:
        rows, columns = {
            "north": (slice(0, 4), slice(3, 5)),
            "south": (slice(4, 8), slice(3, 5)),
            "east": (slice(3, 5), slice(4, 8)),
            "west": (slice(3, 5), slice(0, 4)),
        }[way]
        dots[rows, columns] = True
    return tuple("".join(".#"[int(dot)] for dot in line) for line in dots)


PIECES: Mapping[frozenset[str], str] = {
    frozenset({a, b}): f"{a} {b}"
    for a, b in (
        ("north", "south"),
        ("east", "west"),
        ("north", "east"),
        ("north", "west"),
        ("south", "east"),
        ("south", "west"),
    )
}
"""The two sides that a piece of path joins → its name."""

GROUND: Mapping[str, tuple[tuple[str, ...], tuple[int, int, int]]] = {
    "wall": (("########",) * 8, (96, 84, 76)),
    "start": (
        ("########", "#......#", "#.####.#", "#.####.#", "#.####.#", "#.####.#", "#......#", "########"),
        (44, 160, 44),
    ),
    "exit": (
        ("########", "#......#", "#.#..#.#", "#..##..#", "#..##..#", "#.#..#.#", "#......#", "########"),
        (214, 39, 40),
    ),
    **{name: (_line(tuple(name.split())), (31, 87, 220)) for name in PIECES.values()},
}
"""What a maze is made of → its bitmap and colour."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """An object in a tile."""

    row: int
    column: int
    shape: str
    colour: str

    @property
    def cell(self) -> Cell:
        """Where it is."""
        return self.row, self.column


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's content.

    Attributes:
        things: in reading order; in maps and mazes each of another shape.
        path: a maze's way from the tile of its start to that of its exit; empty elsewhere.
        walls: a maze's walls, in reading order.
    """

    view: View
    things: tuple[Thing, ...]
    path: tuple[Cell, ...] = ()
    walls: tuple[Cell, ...] = ()

    def describe(self) -> str:
        """The canonical description: equal for equal arrangements only."""
        things = ";".join(f"{t.row}{t.column}:{t.colour} {t.shape}" for t in self.things)
        path, walls = (
            ";".join(f"{row}{column}" for row, column in cells) for cells in (self.path, self.walls)
        )
        return "|".join((self.view, things, path, walls))

    @property
    def moves(self) -> tuple[str, ...]:
        """The directions in which the path goes, tile by tile."""
        names = {step: name for name, step in STEPS.items()}
        return tuple(names[b[0] - a[0], b[1] - a[1]] for a, b in pairwise(self.path))

    def ground(self) -> dict[Cell, str]:
        """What lies in a maze's tiles, by the names of ``GROUND``."""
        tiles = dict.fromkeys(self.walls, "wall")
        opposite = dict(zip(STEPS, ("south", "north", "west", "east"), strict=True))
        for cell, (before, after) in zip(self.path[1:-1], pairwise(self.moves), strict=True):
            tiles[cell] = PIECES[frozenset({opposite[before], after})]
        return tiles | (
            dict(zip((self.path[0], self.path[-1]), ("start", "exit"), strict=True)) if self.path else {}
        )


def _cells() -> Iterator[Cell]:
    return ((row, column) for row in range(SIDE) for column in range(SIDE))


def _draw_map(rng: random.Random) -> Scene:
    return Scene("map", _scattered(rng, list(_cells())))


def _scattered(rng: random.Random, cells: Sequence[Cell]) -> tuple[Thing, ...]:
    """Three to five objects of different shapes in some of the cells."""
    chosen = shuffled(rng, cells)[: pick(rng, KINDS)]
    shapes = shuffled(rng, SHAPES)
    return tuple(
        Thing(*cell, shape, pick(rng, tuple(COLOURS)))
        for cell, shape in sorted(zip(chosen, shapes, strict=False))
    )


def _draw_grid(rng: random.Random) -> Scene:
    while True:
        shapes = shuffled(rng, SHAPES)[: pick(rng, KINDS)]
        colours = {shape: pick(rng, tuple(COLOURS)) for shape in shapes}
        chosen = [(cell, pick(rng, shapes)) for cell in _cells()]
        if {shape for _, shape in chosen} == set(shapes):
            return Scene("grid", tuple(Thing(*cell, shape, colours[shape]) for cell, shape in chosen))


def _draw_maze(rng: random.Random) -> Scene:
    turns = pick(rng, TURNS)
    while True:
        path = _walk(rng, turns)
        free = [cell for cell in _cells() if cell not in path] if path else []
        if len(free) >= 2 * max(KINDS):
            things = _scattered(rng, free)
            taken = {thing.cell for thing in things}
            walls = tuple(cell for cell in free if cell not in taken and rng.random() < WALLS)
            return Scene("maze", things, path, walls)


def _walk(rng: random.Random, turns: int) -> tuple[Cell, ...]:
    """A path of straight stretches that never comes beside itself; empty where it ran into a dead end."""
    row, column = int(rng.random() * SIDE), int(rng.random() * SIDE)
    path = {(row, column): None}
    way = pick(rng, tuple(STEPS))
    for stretch in range(turns + 1):
        if stretch:
            way = pick(rng, ("east", "west") if way in ("north", "south") else ("north", "south"))
        down, right = STEPS[way]
        for _ in range(pick(rng, (1, 2, 3)) + (stretch == 0)):
            row, column = row + down, column + right
            if not (0 <= row < SIDE and 0 <= column < SIDE) or (row, column) in path:
                return ()
            if sum((row + d, column + r) in path for d, r in STEPS.values()) > 1:
                return ()
            path[row, column] = None
    return tuple(path)


_DRAWN: Mapping[View, Callable[[random.Random], Scene]] = {
    "map": _draw_map,
    "grid": _draw_grid,
    "maze": _draw_maze,
}


def draw_scene(rng: random.Random) -> Scene:
    """A scene of any view and any split."""
    return _DRAWN[pick(rng, VIEWS)](rng)


@cache
def thing_tile(shape: str, colour: str) -> NDArray[np.uint8]:
    """The picture of an object, ``[16, 16, 3]``."""
    return enlarged(BITMAPS[shape], COLOURS[colour], enlarge=TILE // 8, side=TILE)


@cache
def ground_tile(name: str) -> NDArray[np.uint8]:
    """The picture of a part of a maze, ``[16, 16, 3]``."""
    bitmap, colour = GROUND[name]
    return enlarged(bitmap, colour, enlarge=TILE // 8, side=TILE)


def render(scene: Scene) -> Image.Image:
    """The scene's picture, 96 × 96 RGB."""
    tiles = {cell: ground_tile(name) for cell, name in scene.ground().items()}
    tiles |= {thing.cell: thing_tile(thing.shape, thing.colour) for thing in scene.things}
    return assembled(tiles, SIDE, TILE)


def bearing(of: Cell, seen_from: Cell) -> str:
    """``north east``: the direction in which one of two different tiles lies from the other."""
    down, right = of[0] - seen_from[0], of[1] - seen_from[1]
    upwards = "north" if down < 0 else "south" if down > 0 else ""
    sideways = "east" if right > 0 else "west" if right < 0 else ""
    return f"{upwards} {sideways}".strip()


def _direction(scene: Scene) -> list[Asked]:
    if scene.view != "map":
        return []
    return [
        Asked(f"in which direction is the {a.shape} from the {b.shape}?", bearing(a.cell, b.cell))
        for a, b in permutations(scene.things, 2)
    ]


def _toward(scene: Scene) -> list[Asked]:
    if scene.view != "map":
        return []
    asked = []
    for here in scene.things:
        lying = [(bearing(t.cell, here.cell), t.shape) for t in scene.things if t != here]
        counts = Counter(way for way, _ in lying)
        asked += [
            Asked(f"which object is {way} of the {here.shape}?", f"the {shape}")
            for way, shape in lying
            if counts[way] == 1 and " " in way
        ]
    return asked


def _beyond(scene: Scene) -> list[Asked]:
    if scene.view != "map":
        return []
    counted = [
        (way, here, sum(way in bearing(t.cell, here.cell).split() for t in scene.things if t != here))
        for here in scene.things
        for way in STEPS
    ]
    return [
        Asked(f"how many objects are {way} of the {here.shape}?", COUNTS[count])
        for way, here, count in counted
        if count < min(KINDS)
    ]


def _cell(scene: Scene) -> list[Asked]:
    if scene.view != "grid":
        return []
    return [
        Asked(
            f"which object is in row {NUMBERS[t.row]} and column {NUMBERS[t.column]}?",
            f"the {t.shape}",
        )
        for t in scene.things
    ]


def _tally(scene: Scene) -> list[Asked]:
    if scene.view != "grid":
        return []
    found = Counter(
        (line, n, t.shape) for t in scene.things for line, n in (("row", t.row), ("column", t.column))
    )
    return [
        Asked(f"how many cells of {line} {NUMBERS[n]} hold a {shape}?", COUNTS[found[line, n, shape]])
        for line in ("row", "column")
        for n in range(SIDE)
        for shape in sorted({t.shape for t in scene.things})
    ]


def _leave(scene: Scene) -> list[Asked]:
    return [Asked("in which direction does the path leave the start?", way) for way in scene.moves[:1]]


def _turns(scene: Scene) -> list[Asked]:
    turns = sum(a != b for a, b in pairwise(scene.moves))
    return [Asked("how many turns does the path take?", COUNTS[turns])] if scene.path else []


def _colour(scene: Scene) -> list[Asked]:
    return [
        Asked(f"what colour is the {shape}?", colour)
        for shape, colour in sorted({(t.shape, t.colour) for t in scene.things})
    ]


def _presence(scene: Scene) -> list[Asked]:
    present = {t.shape for t in scene.things}
    return [Asked(f"is there a {shape}?", "yes" if shape in present else "no") for shape in SHAPES]


def _kinds(scene: Scene) -> list[Asked]:
    kinds = len({t.shape for t in scene.things})
    return [Asked("how many kinds of object are there?", f"{COUNTS[kinds]} kinds")]


_THINGS = tuple(f"the {shape}" for shape in SHAPES)
TOPICS: Mapping[str, Topic[Scene]] = {
    "direction": Topic("spatial", DIRECTIONS, _direction, _draw_map),
    "toward": Topic("spatial", _THINGS, _toward, _draw_map),
    "beyond": Topic("spatial", COUNTS[: min(KINDS)], _beyond, _draw_map),
    "cell": Topic("spatial", _THINGS, _cell, _draw_grid),
    "tally": Topic("spatial", COUNTS[:4], _tally, _draw_grid),
    "leave": Topic("spatial", tuple(STEPS), _leave, _draw_maze),
    "turns": Topic("spatial", tuple(COUNTS[n] for n in TURNS), _turns, _draw_maze),
    "colour": Topic("other", tuple(COLOURS), _colour),
    "kinds": Topic("other", tuple(f"{COUNTS[n]} kinds" for n in KINDS), _kinds),
    "presence": Topic("other", ("yes", "no"), _presence),
}

WORLD = World(name="atlas", topics=TOPICS, draw=draw_scene, render=render)
load = WORLD.load
