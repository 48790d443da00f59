"""The grid world: pictures of three to five coloured things on a 3×3 grid, with spatial and other questions.

Rules:
    1. Everything follows from the seed, through ``random.Random.random`` alone, whose sequence Python
       guarantees between versions.
    2. A scene belongs to the one split that the hash of its description names, whatever the seed: no two
       splits can share an arrangement.
    3. Within a topic the answers are dealt in turn, and scenes have no preferred shape, colour or cell:
       the text of a question says next to nothing about its answer.
    4. No scene is its own mirror image, and left and right are asked for by name: a flipped picture has
       other answers.
    5. Pictures are enlarged bitmaps, without antialiasing: their pixels don't depend on a drawing library.

Questions come in pairs about one picture: first a spatial one, then another one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError, did_you_mean
from . import Kind, Question, Split

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 87, 220),
    "yellow": (240, 200, 20),
    "purple": (150, 60, 190),
    "black": (25, 25, 25),
}
BACKGROUND = (236, 236, 232)

BITMAPS: Mapping[str, tuple[str, ...]] = {
    "moon": ("..####..", ".###....", "###.....", "###.....", "###.....", "###.....", ".###....", "..####.."),
    "star": ("...#....", "...#....", "..###...", "########", "..#####.", "..####..", ".##.###.", ".#....##"),
    "house": (".....##.", "...####.", "..#####.", ".#######", "########", ".######.", ".##..##.", ".##..##."),
    "fish": ("........", "..###..#", ".#####.#", "#.######", "########", ".#####.#", "..###..#", "........"),
    "boat": ("....#...", "....##..", "....###.", "....####", "....#...", "########", ".######.", "..####.."),
    "flag": ("##......", "#####...", "########", "#######.", "####....", "##......", "##......", "##......"),
    "key": (".###....", "##.##...", "#...####", "##.##.##", ".###..##", "......#.", "........", "........"),
    "cup": ("........", "######..", "########", "######.#", "######.#", "########", "######..", ".####..."),
}
SHAPES = tuple(BITMAPS)

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
COUNTS: Mapping[int, str] = {3: "three", 4: "four", 5: "five"}

TILE = 32
"""Pixels of a cell's side; a picture has 3 × 3 cells."""
ENLARGE = 3
"""Pixels of a bitmap dot's side: 8 dots fill 24 pixels, which leaves a margin of 4 around each thing."""

DEFAULT_SEED = 0
SIZES: Mapping[Split, int] = {"train": 4096, "calibration": 256, "validation": 1024, "test": 2048}
"""Questions per split, half of them spatial."""
_BUCKETS: Mapping[Split, range] = {
    "train": range(0, 80),
    "calibration": range(80, 84),
    "validation": range(84, 90),
    "test": range(90, 100),
}

T = TypeVar("T")


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


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """One of ``choices``, each as likely (rule 1)."""
    return choices[int(rng.random() * len(choices))]


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """The items in random order (rule 1)."""
    return [item for _, _, item in sorted((rng.random(), i, item) for i, item in enumerate(items))]


def draw_scene(rng: random.Random) -> Scene:
    """A scene of three to five things, of any split, that differs from its mirror image (rule 4)."""
    while True:
        cells = shuffled(rng, range(9))[: pick(rng, tuple(COUNTS))]
        shapes = shuffled(rng, SHAPES)
        colours = tuple(COLOURS)
        placed = sorted(zip(cells, shapes, strict=False))
        scene = Scene(tuple(Thing(cell // 3, cell % 3, shape, pick(rng, colours)) for cell, shape in placed))
        if scene.mirrored() != scene:
            return scene


def split_of(scene: Scene) -> Split:
    """The one split that a scene may occur in (rule 2)."""
    bucket = int.from_bytes(hashlib.sha256(scene.describe().encode()).digest()[:8], "big") % 100
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def scenes(split: Split, rng: random.Random) -> Iterator[Scene]:
    """Scenes of one split, without end."""
    while True:
        scene = draw_scene(rng)
        if split_of(scene) == split:
            yield scene


@cache
def tile(shape: str, colour: str) -> NDArray[np.uint8]:
    """The picture of a thing in its cell, ``[32, 32, 3]``."""
    dots = np.array([[dot == "#" for dot in line] for line in BITMAPS[shape]])
    mask = np.pad(np.kron(dots, np.ones((ENLARGE, ENLARGE), np.bool_)), (TILE - 8 * ENLARGE) // 2)
    return np.where(mask[..., None], np.array(COLOURS[colour], np.uint8), np.array(BACKGROUND, np.uint8))


def render(scene: Scene) -> Image.Image:
    """The scene's picture, 96 × 96 RGB."""
    pixels = np.broadcast_to(np.array(BACKGROUND, np.uint8), (3 * TILE, 3 * TILE, 3)).copy()
    for t in scene.things:
        top, left = t.row * TILE, t.column * TILE
        pixels[top : top + TILE, left : left + TILE] = tile(t.shape, t.colour)
    return Image.fromarray(pixels)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer, in words."""

    prompt: str
    answer: str


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


@dataclass(frozen=True, slots=True)
class Topic:
    """A kind of question: all that can be asked of a scene, and every answer there is."""

    kind: Kind
    answers: tuple[str, ...]
    ask: Callable[[Scene], list[Asked]]


_THINGS = tuple(f"the {shape}" for shape in SHAPES)
TOPICS: Mapping[str, Topic] = {
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


def topics_of(kind: Kind) -> tuple[str, ...]:
    """The names of a kind's topics."""
    return tuple(name for name, topic in TOPICS.items() if topic.kind == kind)


def ask(scene: Scene, topic: str, rng: random.Random) -> Asked | None:
    """A question of a topic about a scene, each possible answer as likely; None if there is none to ask."""
    asked = TOPICS[topic].ask(scene)
    if not asked:
        return None
    answer = pick(rng, sorted({a.answer for a in asked}))
    return pick(rng, [a for a in asked if a.answer == answer])


def _deal(kind: Kind) -> Iterator[tuple[str, str]]:
    """Topics in turn and, within each, its answers in turn, without end (rule 3)."""
    turn = 0
    names = topics_of(kind)
    while True:
        for name in names:
            answers = TOPICS[name].answers
            yield name, answers[turn % len(answers)]
        turn += 1


def _pairs(split: Split, seed: int) -> Iterator[Question]:
    """Questions two by two about one picture, without end."""
    rng = random.Random(f"gridworld:{seed}:{split}")
    supply = scenes(split, rng)
    for number, dealt in enumerate(zip(_deal("spatial"), _deal("other"), strict=True)):
        chosen: list[Asked] = []
        while len(chosen) < len(dealt):
            scene = next(supply)
            fitting = [[a for a in TOPICS[topic].ask(scene) if a.answer == answer] for topic, answer in dealt]
            chosen = [pick(rng, choices) for choices in fitting if choices]
        image = render(scene)
        instance = f"{split}-{seed}-{number:05d}"
        for (topic, _), asked in zip(dealt, chosen, strict=True):
            yield Question(
                id=f"{instance}-{topic}",
                instance=instance,
                picture=image,
                prompt=asked.prompt,
                answer=asked.answer,
                kind=TOPICS[topic].kind,
                topic=topic,
            )


def _options(argument: str) -> dict[str, int]:
    """``seed=7,size=96`` → the numbers by name.

    Raises:
        UserError: an unknown option, or a value that is no whole number.
    """
    options = {"seed": DEFAULT_SEED}
    known = ("seed", "size")
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"gridworld has no option {name!r}{hint}; it takes {' and '.join(known)} (gridworld:seed=7)"
            )
        if not value.isdecimal():
            raise UserError(f"gridworld's {name} must be a whole number, got {value!r} (gridworld:{name}=7)")
        options[name] = int(value)
    return options


def load(argument: str, split: Split, limit: int | None) -> list[Question]:
    """The questions of a split; ``argument`` may hold ``seed=N`` and ``size=N`` (questions), comma-separated.

    Raises:
        UserError: an unknown option or a malformed one.
    """
    options = _options(argument)
    size = options.get("size", SIZES[split])
    wanted = size if limit is None else min(limit, size)
    return [question for _, question in zip(range(wanted), _pairs(split, options["seed"]), strict=False)]
