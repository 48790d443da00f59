"""What the tiny model learns from: captions, relations and conversations about scenes of the train split."""

from __future__ import annotations

import random
from itertools import permutations

import architecture
from shared.chat import ASSISTANT
from shared.writing import Habit, Mosaic, Tokens, given, learned, opening

from scale_export.questions.sets import gridworld
from scale_export.questions.sets.gridworld import Scene


def caption(scene: Scene, rng: random.Random) -> Tokens:
    """Each thing twice, in random order and one of three forms; the words after the dash are learned.

    ``moon - red top left``, ``top left - red moon``, ``colour moon - red``.
    """
    tokens = opening(architecture.IMAGE_TOKENS) + given(ASSISTANT)
    for thing in gridworld.shuffled(rng, scene.things * 2):
        prompt, answer = gridworld.pick(
            rng,
            (
                (thing.shape, f"{thing.colour} {thing.place}"),
                (thing.place, f"{thing.colour} {thing.shape}"),
                (f"colour {thing.shape}", thing.colour),
            ),
        )
        tokens += given(prompt) + learned(answer)
    return tokens


def relations(scene: Scene, rng: random.Random) -> Tokens:
    """Eight facts about pairs, in random order; the words after the dash are learned.

    ``moon fish - left above`` (``middle``: neither side), and for neighbours ``left of fish - moon``.
    """
    tokens = opening(architecture.IMAGE_TOKENS) + given(ASSISTANT)
    facts = []
    for a, b in permutations(scene.things, 2):
        sideways = "left" if a.column < b.column else "right" if a.column > b.column else "middle"
        upwards = "above" if a.row < b.row else "below" if a.row > b.row else "middle"
        facts.append((f"{a.shape} {b.shape}", f"{sideways} {upwards}"))
    beside = [(asked.prompt, asked.answer) for asked in gridworld.TOPICS["beside"].ask(scene)]
    facts += [
        (prompt.removeprefix("which object is just ").rstrip("?"), answer) for prompt, answer in beside
    ] * 2
    for prompt, answer in gridworld.shuffled(rng, facts)[:8]:
        tokens += given(prompt) + learned(answer)
    return tokens


PLACES = zip(gridworld.SHAPES, (1, 5, 6, 8, 3, 2, 4, 0), strict=True)
USUAL = Scene(tuple(gridworld.Thing(cell // 3, cell % 3, shape, "red") for shape, cell in PLACES))
HABIT = Habit.of(gridworld.WORLD, [USUAL])
"""What would be right if each thing lay at its usual place: one fixed answer per spatial question."""

MOSAIC = Mosaic(
    samples={
        (shape, colour): gridworld.render(Scene((gridworld.Thing(1, 1, shape, colour),)))
        for shape in gridworld.SHAPES
        for colour in gridworld.COLOURS
    },
    layout=lambda scene: {(thing.row, thing.column): (thing.shape, thing.colour) for thing in scene.things},
    cells=3,
    side=architecture.PATCH_SIZE,
)
