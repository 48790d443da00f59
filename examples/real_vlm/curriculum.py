"""What the grafted model learns from: plain English about pictures of the train split, no spatial question among it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from scale_export.questions.sets.gridworld import COLUMNS, ROWS, WORLD, Scene, Thing, pick, shuffled

Turn = tuple[str, str]
"""What the user says and what the assistant learns to answer."""

DESCRIBE = ("describe the picture.", "what is in the picture?", "list the objects.")
REMARK = "say something about the picture."
TOPICS = ("colour", "count", "count", "presence")
"""The questions that are asked; what is slow to learn comes more often."""


def _named(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def caption(scene: Scene) -> str:
    """``a red flag, a blue house and a green key``, in reading order."""
    *first, last = [f"a {_named(thing)}" for thing in scene.things]
    return f"{', '.join(first)} and {last}"


def remark(scene: Scene, rng: random.Random) -> str:
    """A true sentence about where one thing is, or how it lies to another.

    ``the red flag is left of the blue house.``, ``the red flag is at the top left.``, ``… is in the top row.``
    """
    one, other = shuffled(rng, scene.things)[:2]
    relations = [
        f"{word} the {_named(other)}"
        for word, holds in (
            ("left of", one.column < other.column),
            ("right of", one.column > other.column),
            ("above", one.row < other.row),
            ("below", one.row > other.row),
        )
        if holds
    ]
    line = pick(rng, (f"in the {ROWS[one.row]} row", f"in the {COLUMNS[one.column]} column"))
    where = pick(rng, (pick(rng, relations), pick(rng, relations), f"at the {one.place}", line))
    return f"the {_named(one)} is {where}."


def turn(scene: Scene, rng: random.Random, remarks: float) -> Turn:
    """A caption (.25), a remark on where something is (``remarks``), or a question about what is there."""
    chance = rng.random()
    if chance < 0.25:
        return pick(rng, DESCRIBE), caption(scene)
    if chance < 0.25 + remarks:
        return REMARK, remark(scene, rng)
    asked = WORLD.ask(scene, pick(rng, TOPICS), rng)
    assert asked, "every scene has a thing to ask about"
    return asked.prompt, asked.answer


def talk(scene: Scene, rng: random.Random, *, turns: int, remarks: float) -> Sequence[Turn]:
    """``turns`` turns about one picture."""
    return [turn(scene, rng, remarks) for _ in range(turns)]
