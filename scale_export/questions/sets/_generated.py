"""What generated question sets share: chance, pictures of enlarged bitmaps, splits, and answers dealt in turn.

Rules of every such set:
    1. Everything follows from the seed, through ``random.Random.random`` alone, whose sequence Python
       guarantees between versions.
    2. A scene belongs to the one split that the hash of its description names, whatever the seed: no two
       splits can share an arrangement.
    3. Within a topic the answers are dealt in turn, and scenes have no preferred shape, colour or cell:
       the text of a question says next to nothing about its answer.
    4. Pictures are enlarged bitmaps, without antialiasing: their pixels don't depend on a drawing library.

Questions come in pairs about one picture: first a spatial one, then another one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.words import Split
from scale_export.questions.question import Kind, Question

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
"""Eight dots by eight; none is its own mirror image."""
SHAPES = tuple(BITMAPS)

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


class Describable(Protocol):
    """A scene: what it says of itself is equal for equal arrangements only."""

    def describe(self) -> str: ...


S = TypeVar("S", bound=Describable)


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """One of ``choices``, each as likely (rule 1)."""
    return choices[int(rng.random() * len(choices))]


def shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    """The items in random order (rule 1)."""
    return [item for _, _, item in sorted((rng.random(), i, item) for i, item in enumerate(items))]


def enlarged(
    bitmap: Sequence[str], colour: tuple[int, int, int], *, enlarge: int, side: int
) -> NDArray[np.uint8]:
    """A bitmap's dots as squares of ``enlarge`` pixels, centred in ``side`` pixels, ``[side, side, 3]`` (rule 4)."""
    dots = np.array([[dot == "#" for dot in line] for line in bitmap])
    mask = np.pad(np.kron(dots, np.ones((enlarge, enlarge), np.bool_)), (side - len(bitmap) * enlarge) // 2)
    return np.where(mask[..., None], np.array(colour, np.uint8), np.array(BACKGROUND, np.uint8))


def assembled(tiles: Mapping[tuple[int, int], NDArray[np.uint8]], cells: int, side: int) -> Image.Image:
    """The picture of tiles by (row, column) on ``cells`` × ``cells`` of ``side`` pixels; others are background."""
    pixels = np.broadcast_to(np.array(BACKGROUND, np.uint8), (cells * side, cells * side, 3)).copy()
    for (row, column), tile in tiles.items():
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return Image.fromarray(pixels)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer, in words."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Topic(Generic[S]):
    """A kind of question: all that can be asked of a scene, and every answer there is.

    ``draw`` makes scenes that it can be asked of, where the world's own don't all do.
    """

    kind: Kind
    answers: tuple[str, ...]
    ask: Callable[[S], list[Asked]]
    draw: Callable[[random.Random], S] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World(Generic[S]):
    """A generated set: how scenes are drawn, what they look like, and what is asked of them.

    For a deal of answers that says nothing about the pair's other question, the numbers of spatial topics, of
    other topics and of their answers should have no common factor that would keep two of them in step.
    """

    name: str
    topics: Mapping[str, Topic[S]]
    draw: Callable[[random.Random], S]
    render: Callable[[S], Image.Image]

    def split_of(self, scene: S) -> Split:
        """The one split that a scene may occur in (rule 2)."""
        bucket = int.from_bytes(hashlib.sha256(scene.describe().encode()).digest()[:8], "big") % 100
        return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)

    def scenes(self, split: Split, rng: random.Random, topic: str | None = None) -> Iterator[S]:
        """Scenes of one split, or those that a topic can be asked of, without end."""
        draw = (self.topics[topic].draw if topic else None) or self.draw
        while True:
            scene = draw(rng)
            if self.split_of(scene) == split:
                yield scene

    def topics_of(self, kind: Kind) -> tuple[str, ...]:
        """The names of a kind's topics."""
        return tuple(name for name, topic in self.topics.items() if topic.kind == kind)

    def ask(self, scene: S, topic: str, rng: random.Random) -> Asked | None:
        """A question of a topic about a scene, each possible answer as likely; None if there is none to ask."""
        asked = self.topics[topic].ask(scene)
        if not asked:
            return None
        answer = pick(rng, sorted({a.answer for a in asked}))
        return pick(rng, [a for a in asked if a.answer == answer])

    def load(self, argument: str, split: Split, limit: int | None) -> list[Question]:
        """The questions of a split; ``argument`` may hold ``seed=N`` and ``size=N`` (questions), comma-separated.

        Raises:
            UserError: an unknown option or a malformed one.
        """
        options = self._options(argument)
        size = options.get("size", SIZES[split])
        wanted = size if limit is None else min(limit, size)
        return [q for _, q in zip(range(wanted), self._pairs(split, options["seed"]), strict=False)]

    def _deal(self, kind: Kind) -> Iterator[tuple[str, str]]:
        """Topics in turn and, within each, its answers in turn, without end (rule 3)."""
        turn = 0
        names = self.topics_of(kind)
        while True:
            for name in names:
                answers = self.topics[name].answers
                yield name, answers[turn % len(answers)]
            turn += 1

    def _pairs(self, split: Split, seed: int) -> Iterator[Question]:
        """Questions two by two about one picture, without end."""
        rng = random.Random(f"{self.name}:{seed}:{split}")
        supplies = {topic: self.scenes(split, rng, topic) for topic in self.topics_of("spatial")}
        for number, dealt in enumerate(zip(self._deal("spatial"), self._deal("other"), strict=True)):
            chosen: list[Asked] = []
            while len(chosen) < len(dealt):
                scene = next(supplies[dealt[0][0]])
                fitting = [
                    [a for a in self.topics[topic].ask(scene) if a.answer == answer]
                    for topic, answer in dealt
                ]
                chosen = [pick(rng, choices) for choices in fitting if choices]
            image = self.render(scene)
            instance = f"{split}-{seed}-{number:05d}"
            for (topic, _), asked in zip(dealt, chosen, strict=True):
                yield Question(
                    id=f"{instance}-{topic}",
                    instance=instance,
                    pictures=(image,),
                    prompt=asked.prompt,
                    answer=asked.answer,
                    kind=self.topics[topic].kind,
                    topic=topic,
                )

    def _options(self, argument: str) -> dict[str, int]:
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
                    f"{self.name} has no option {name!r}{hint}; it takes {' and '.join(known)} ({self.name}:seed=7)"
                )
            if not value.isdecimal():
                raise UserError(
                    f"{self.name}'s {name} must be a whole number, not {value!r} ({self.name}:{name}=7)"
                )
            options[name] = int(value)
        return options
