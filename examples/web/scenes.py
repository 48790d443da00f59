"""Writes the page's scenes: the shipped one and the first of the grid world's test split, with questions and answers.

    python examples/web/scenes.py

Nothing is chosen by what a model answers.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scale_export.questions.sets.gridworld import (
    BITMAPS,
    COLOURS,
    TILE,
    TOPICS,
    Scene,
    Thing,
    render,
    scenes,
    tile,
)

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "tiny_vlm"
OUT = HERE / "public/scenes"
SCENES = 8
ASKED = ("at", "left_right", "above_below", "beside", "place", "colour")
"""Topics, one question of each."""


def seen(picture: Path) -> Scene:
    """The scene that a picture of the grid world shows, of whatever size."""
    plain = Image.open(picture).convert("RGB").resize((3 * TILE, 3 * TILE), Image.Resampling.NEAREST)
    pixels = np.asarray(plain)
    things = []
    for row, column in itertools.product(range(3), repeat=2):
        cell = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        for shape, colour in itertools.product(BITMAPS, COLOURS):
            if np.array_equal(cell, tile(shape, colour)):
                things.append(Thing(row, column, shape, colour))
    return Scene(tuple(things))


def described(scene: Scene) -> str:
    """What the picture shows, without saying where: that is what is asked."""
    return "a scene with " + ", ".join(f"a {thing.colour} {thing.shape}" for thing in scene.things)


def questions(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """One question of each topic that the scene has one of; the shipped one's own comes first."""
    asked = []
    for topic in ASKED:
        if choices := TOPICS[topic].ask(scene):
            chosen = choices[int(rng.random() * len(choices))]
            asked.append({"question": chosen.prompt, "answer": chosen.answer})
    return asked


def shipped_question() -> dict[str, str]:
    """The question that every example asks."""
    words = {
        name: (SHIPPED / f"{name}.txt").read_text(encoding="utf-8").strip() for name in ("question", "answer")
    }
    return {"question": words["question"], "answer": words["answer"]}


def chosen() -> Iterator[tuple[Scene, list[dict[str, str]]]]:
    """Each scene with its questions."""
    rng = random.Random("the web page's scenes")
    first = seen(SHIPPED / "scene.png")
    own = shipped_question()
    yield (
        first,
        [own, *(asked for asked in questions(first, rng)[1:] if asked["question"] != own["question"])],
    )
    for scene in itertools.islice(scenes("test", rng), SCENES - 1):
        yield scene, questions(scene, rng)


def write(out: Path) -> None:
    """Write pictures and ``scenes.json`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    table: list[dict[str, Any]] = []
    for number, (scene, asked) in enumerate(chosen()):
        name = f"scene-{number}.png"
        if number == 0:
            shutil.copyfile(SHIPPED / "scene.png", out / name)
        else:
            render(scene).save(out / name, optimize=True)
        table.append({"file": name, "describes": described(scene), "questions": asked})
    (out / "scenes.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(OUT)
