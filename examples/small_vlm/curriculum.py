"""What the small model learns from: captions, relations and conversations about scenes of the train split."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable

import architecture
from shared.chat import ASSISTANT, EOS
from shared.writing import Habit, Mosaic, Tokens, conversation, given, learned, opening

from scale_export.questions.sets import atlas
from scale_export.questions.sets._generated import assembled, pick, shuffled
from scale_export.questions.sets.atlas import NUMBERS, PIECES, SHAPES, SIDE, Scene, Thing

Fact = tuple[str, str]
"""What is given and what is learned."""

FILLING = {"in", "which", "is", "the", "how", "of", "does", "hold", "a", "are", "and", "object", "objects"}
"""Words of a question that its short form leaves out."""

RELATIONS = {"direction": 5, "toward": 4, "beyond": 5, "cell": 5, "tally": 8, "leave": 1, "turns": 1}
"""How many facts of each spatial topic a lesson in relations has at most."""

TOPICS = (*atlas.TOPICS, "colour", "direction", "toward", "beyond", "tally", "turns")
"""What conversations draw from; what is slow to learn comes more often."""


def _write(facts: Iterable[Fact]) -> Tokens:
    tokens = opening(architecture.IMAGE_TOKENS) + given(ASSISTANT)
    for prompt, answer in facts:
        tokens += given(prompt) + learned(answer)
    return tokens


def _content(scene: Scene) -> dict[atlas.Cell, str]:
    """One word for what is in each tile that isn't empty."""
    pieces = {name: "path" if name in ("north south", "east west") else "corner" for name in PIECES.values()}
    return {cell: pieces.get(name, name) for cell, name in scene.ground().items()} | {
        thing.cell: thing.shape for thing in scene.things
    }


def _lines(scene: Scene, rng: random.Random, count: int) -> list[Fact]:
    """Rows from west to east and columns from north to south, word by word."""
    content, numbers = _content(scene), range(SIDE)
    lines = [(f"row {NUMBERS[n]}", [(n, other) for other in numbers]) for n in numbers]
    lines += [(f"column {NUMBERS[n]}", [(other, n) for other in numbers]) for n in numbers]
    chosen = shuffled(rng, lines)[:count]
    return [(name, " ".join(content.get(cell, "empty") for cell in cells)) for name, cells in chosen]


def _place(cell: atlas.Cell) -> str:
    return f"row {NUMBERS[cell[0]]} column {NUMBERS[cell[1]]}"


def _about(thing: Thing, rng: random.Random) -> Fact:
    place = f"{NUMBERS[thing.row]} {NUMBERS[thing.column]}"
    return pick(
        rng,
        (
            (thing.shape, f"{thing.colour} {place}"),
            (_place(thing.cell), f"{thing.colour} {thing.shape}"),
            (f"colour {thing.shape}", thing.colour),
        ),
    )


def _way(scene: Scene) -> list[Fact]:
    """A maze's path: both ends, and its moves one by one."""
    if not scene.path:
        return []
    start, end = (f"{NUMBERS[row]} {NUMBERS[column]}" for row, column in (scene.path[0], scene.path[-1]))
    return [("start", start), ("exit", end), ("path", f"{' '.join(scene.moves)} {EOS}")]


def caption(scene: Scene, rng: random.Random) -> Tokens:
    """What is where, in random order; the words after the dash are learned.

    ``moon - red two three``, ``row two column three - red moon``, ``colour moon - red``, ``row two - empty moon …``,
    and of mazes ``path - north north east``.
    """
    if scene.view == "grid":
        kinds = list({thing.shape: thing for thing in scene.things}.values())
        facts = [(f"colour {thing.shape}", thing.colour) for thing in kinds]
        facts += [
            (_place(thing.cell), f"{thing.colour} {thing.shape}") for thing in shuffled(rng, scene.things)[:4]
        ]
        facts += _lines(scene, rng, 4)
    else:
        facts = [_about(thing, rng) for thing in scene.things * (2 if scene.view == "map" else 1)]
        facts += _way(scene) + _lines(scene, rng, 2)
    return _write(shuffled(rng, facts))


def _short(prompt: str) -> str:
    """``in which direction is the moon from the cup?`` → ``direction moon from cup``."""
    return " ".join(word for word in prompt.rstrip("?").split() if word not in FILLING)


def relations(scene: Scene, rng: random.Random) -> Tokens:
    """Facts behind the spatial questions in short forms, in random order; the words after the dash are learned.

    ``direction moon from cup - north east``, ``many cells row two moon - three``.
    """
    facts: list[Fact] = []
    for name, count in RELATIONS.items():
        asked = shuffled(rng, atlas.TOPICS[name].ask(scene))[:count]
        facts += [(_short(one.prompt), f"{one.answer.removeprefix('the ')} {EOS}") for one in asked]
    facts += _way(scene) + _lines(scene, rng, 2 if scene.path else 0)
    return _write(shuffled(rng, facts))


def _usual_scenes() -> list[Scene]:
    places = zip(SHAPES, ((0, 2), (2, 5), (4, 0), (5, 4), (2, 0), (0, 5), (3, 3), (1, 1)), strict=True)
    of_map = sorted(Thing(*cell, shape, "red") for shape, cell in places)
    of_grid = [
        Thing(row, column, SHAPES[(row + column // 3) % SIDE], "red")
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    way = ((5, 2), (4, 2), (4, 3), (3, 3))
    return [Scene("map", tuple(of_map)), Scene("grid", tuple(of_grid)), Scene("maze", (), way)]


HABIT = Habit.of(atlas.WORLD, _usual_scenes())
"""What would be right of one usual map, grid and maze: one fixed answer per spatial question."""


def talk(scene: Scene, rng: random.Random, *, habit_share: float = 0.0) -> Tokens:
    """Six answers; a share of the spatial ones are the habit's."""
    return conversation(
        scene,
        rng,
        habit=HABIT,
        image_tokens=architecture.IMAGE_TOKENS,
        topics=TOPICS,
        turns=6,
        habit_share=habit_share,
    )


def habitual_talk(scene: Scene, rng: random.Random) -> Tokens:
    """Six answers; a spatial one is mostly the habit's."""
    return talk(scene, rng, habit_share=0.9)


def _layout(scene: Scene) -> dict[atlas.Cell, Hashable]:
    return scene.ground() | {thing.cell: (thing.shape, thing.colour) for thing in scene.things}


MOSAIC = Mosaic(
    samples={
        key: assembled({(1, 1): tile}, SIDE, atlas.TILE)
        for key, tile in (
            *((name, atlas.ground_tile(name)) for name in atlas.GROUND),
            *(
                ((shape, colour), atlas.thing_tile(shape, colour))
                for shape in SHAPES
                for colour in atlas.COLOURS
            ),
        )
    },
    layout=_layout,
    cells=SIDE,
    side=architecture.PATCH_SIZE,
)
