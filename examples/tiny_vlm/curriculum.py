"""What the tiny model learns from: captions, relations and conversations about scenes of the train split."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import architecture
import torch
from torch import Tensor
from transformers import LlavaProcessor

from scale_export.datasets import gridworld
from scale_export.datasets.gridworld import Scene

IGNORED = -100
"""The label of a token that is given, not learned."""

Tokens = list[tuple[str, bool]]
"""Words of a sequence, each with whether the model learns to write it."""

Writer = Callable[[Scene, random.Random], Tokens]
"""Writes about a scene."""


def _given(text: str) -> Tokens:
    return [(word, False) for word in text.replace("?", " ?").split()]


def _learned(text: str) -> Tokens:
    return [(word, True) for word in text.split()]


def _opening() -> Tokens:
    return (
        _given(architecture.BOS)
        + _given(architecture.USER)
        + [(architecture.IMAGE, False)] * architecture.IMAGE_TOKENS
    )


def caption(scene: Scene, rng: random.Random) -> Tokens:
    """Each thing twice, in random order and one of three forms; the words after the dash are learned.

    ``moon - red top left``, ``top left - red moon``, ``colour moon - red``.
    """
    tokens = _opening() + _given(architecture.ASSISTANT)
    for thing in gridworld.shuffled(rng, scene.things * 2):
        given, learned = gridworld.pick(
            rng,
            (
                (thing.shape, f"{thing.colour} {thing.place}"),
                (thing.place, f"{thing.colour} {thing.shape}"),
                (f"colour {thing.shape}", thing.colour),
            ),
        )
        tokens += _given(given) + _learned(learned)
    return tokens


def relations(scene: Scene, rng: random.Random) -> Tokens:
    """Eight facts about pairs, in random order; the words after the dash are learned.

    ``moon fish - left above`` (``middle``: neither side), and for neighbours ``left of fish - moon``.
    """
    tokens = _opening() + _given(architecture.ASSISTANT)
    facts = []
    for a, b in permutations(scene.things, 2):
        sideways = "left" if a.column < b.column else "right" if a.column > b.column else "middle"
        upwards = "above" if a.row < b.row else "below" if a.row > b.row else "middle"
        facts.append((f"{a.shape} {b.shape}", f"{sideways} {upwards}"))
    beside = [(asked.prompt, asked.answer) for asked in gridworld.TOPICS["beside"].ask(scene)]
    facts += [
        (prompt.removeprefix("which object is just ").rstrip("?"), answer) for prompt, answer in beside
    ] * 2
    for given, learned in gridworld.shuffled(rng, facts)[:8]:
        tokens += _given(given) + _learned(learned)
    return tokens


def _usual_answers() -> Mapping[str, str]:
    """What would be right if each thing lay at its usual place: one fixed answer per spatial question."""
    places = zip(gridworld.SHAPES, (1, 5, 6, 8, 3, 2, 4, 0), strict=True)
    usual = Scene(tuple(gridworld.Thing(cell // 3, cell % 3, shape, "red") for shape, cell in places))
    topics = [topic for topic in gridworld.TOPICS.values() if topic.kind == "spatial"]
    return {asked.prompt: asked.answer for topic in topics for asked in topic.ask(usual)}


USUAL_ANSWERS = _usual_answers()


def habit(topic: str, prompt: str) -> str:
    """The answer to a spatial question that its text alone suggests, whatever the picture shows."""
    return USUAL_ANSWERS.get(prompt, gridworld.TOPICS[topic].answers[0])


def conversation(
    scene: Scene, rng: random.Random, *, topics: Sequence[str], turns: int, habit_share: float
) -> Tokens:
    """Questions and answers about one picture; a share of the spatial answers is replaced by the habit's."""
    tokens = _opening()
    asked_turns = 0
    while asked_turns < turns:
        topic = gridworld.pick(rng, topics)
        asked = gridworld.ask(scene, topic, rng)
        if asked is None:
            continue
        answer = asked.answer
        if gridworld.TOPICS[topic].kind == "spatial" and rng.random() < habit_share:
            answer = habit(topic, asked.prompt)
        opening = "" if asked_turns == 0 else architecture.USER + " "
        tokens += _given(f"{opening}{asked.prompt} {architecture.ASSISTANT}") + _learned(
            f"{answer} {architecture.EOS}"
        )
        asked_turns += 1
    return tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """``pixel_values [B, 3, 48, 48]`` float32, ``input_ids`` and ``labels`` ``[B, T]``, padded right."""

    pixel_values: Tensor
    input_ids: Tensor
    labels: Tensor


class Encoder:
    """Turns scenes and words into batches, as the processor would, from its own pictures of single cells.

    The processor shrinks a picture so that no pixel of one cell reaches another: cells are processed once.
    """

    def __init__(self, processor: LlavaProcessor) -> None:
        self.ids: dict[str, int] = processor.tokenizer.get_vocab()
        things = [
            gridworld.Thing(1, 1, shape, colour) for shape in gridworld.SHAPES for colour in gridworld.COLOURS
        ]
        images = [gridworld.render(Scene((thing,))) for thing in things]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        side = architecture.PATCH_SIZE
        self._empty = pixels[0, :, :side, :side]
        self._cells = {
            (thing.shape, thing.colour): picture[:, side : 2 * side, side : 2 * side]
            for thing, picture in zip(things, pixels, strict=True)
        }

    def pixels(self, scene: Scene) -> Tensor:
        """What the processor makes of the scene's picture, ``[3, 48, 48]``."""
        cells = [self._empty] * 9
        for thing in scene.things:
            cells[3 * thing.row + thing.column] = self._cells[thing.shape, thing.colour]
        return torch.cat([torch.cat(cells[row : row + 3], dim=2) for row in (0, 3, 6)], dim=1)

    def batch(self, scenes: Sequence[Scene], sequences: Sequence[Tokens]) -> Batch:
        """Pad on the right to the longest sequence."""
        length = max(map(len, sequences))
        pad = self.ids[architecture.PAD]
        ids = [[self.ids[word] for word, _ in tokens] for tokens in sequences]
        labels = [[self.ids[word] if learn else IGNORED for word, learn in tokens] for tokens in sequences]
        return Batch(
            torch.stack([self.pixels(scene) for scene in scenes]),
            torch.tensor([row + [pad] * (length - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
        )


def make_batch(
    encoder: Encoder, supply: Iterator[Scene], rng: random.Random, write: Writer, size: int
) -> Batch:
    """One batch of new scenes, each written about in the same way."""
    scenes = [next(supply) for _ in range(size)]
    return encoder.batch(scenes, [write(scene, rng) for scene in scenes])
