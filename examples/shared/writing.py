"""Lessons as tokens: what is given and what is learned, conversations with or without a habit, batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from scale_export.questions.sets._generated import World, pick

from . import chat

IGNORED = -100
"""The label of a token that is given, not learned."""

Tokens = list[tuple[str, bool]]
"""Words of a sequence, each with whether the model learns to write it."""

Writer = Callable[[Any, random.Random], Tokens]
"""Writes about a scene."""


def given(text: str) -> Tokens:
    """Words that the model reads."""
    return [(word, False) for word in text.replace("?", " ?").split()]


def learned(text: str) -> Tokens:
    """Words that the model learns to write."""
    return [(word, True) for word in text.split()]


def opening(image_tokens: int) -> Tokens:
    """What comes before the first question: the picture."""
    return given(chat.BOS) + given(chat.USER) + [(chat.IMAGE, False)] * image_tokens


@dataclass(frozen=True, slots=True)
class Habit:
    """What the words of spatial questions suggest, whatever the picture shows: the answers of usual scenes."""

    world: World[Any]
    usual: Mapping[str, str]

    @classmethod
    def of(cls, world: World[Any], scenes: Sequence[Any]) -> Habit:
        """The habit of answering as if one of ``scenes`` were seen."""
        topics = [world.topics[name] for name in world.topics_of("spatial")]
        asked = [asked for scene in scenes for topic in topics for asked in topic.ask(scene)]
        return cls(world, {one.prompt: one.answer for one in asked})

    def answer(self, topic: str, prompt: str) -> str:
        """The answer to a spatial question that its text alone suggests."""
        return self.usual.get(prompt, self.world.topics[topic].answers[0])


def conversation(
    scene: Any,
    rng: random.Random,
    *,
    habit: Habit,
    image_tokens: int,
    topics: Sequence[str],
    turns: int,
    habit_share: float,
) -> Tokens:
    """Questions and answers about one picture; a share of the spatial answers is replaced by the habit's."""
    tokens = opening(image_tokens)
    asked_turns = 0
    while asked_turns < turns:
        topic = pick(rng, topics)
        asked = habit.world.ask(scene, topic, rng)
        if asked is None:
            continue
        answer = asked.answer
        if habit.world.topics[topic].kind == "spatial" and rng.random() < habit_share:
            answer = habit.answer(topic, asked.prompt)
        user = "" if asked_turns == 0 else chat.USER + " "
        tokens += given(f"{user}{asked.prompt} {chat.ASSISTANT}") + learned(f"{answer} {chat.EOS}")
        asked_turns += 1
    return tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """``pixel_values [B, 3, H, W]`` float32, ``input_ids`` and ``labels`` ``[B, T]``, padded right."""

    pixel_values: Tensor
    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """How scenes are put together from tiles.

    Attributes:
        samples: a tile's key → a picture of the tile alone in row 1, column 1.
        layout: scene → the key of each (row, column) that isn't empty.
        cells: tiles of a picture's side.
        side: pixels of a tile's side after the processor.
    """

    samples: Mapping[Hashable, Image.Image]
    layout: Callable[[Any], Mapping[tuple[int, int], Hashable]]
    cells: int
    side: int


class Encoder:
    """Turns scenes and words into batches, as the processor would, from its own pictures of single tiles.

    The processor's filter lets no pixel of one tile reach another: tiles are processed once.
    """

    def __init__(self, processor: LlavaProcessor, mosaic: Mosaic) -> None:
        self.ids: dict[str, int] = processor.tokenizer.get_vocab()
        self.mosaic = mosaic
        pixels = processor.image_processor(list(mosaic.samples.values()), return_tensors="pt")["pixel_values"]
        side = mosaic.side
        self._empty = pixels[0, :, :side, :side]
        self._tiles = {
            key: picture[:, side : 2 * side, side : 2 * side]
            for key, picture in zip(mosaic.samples, pixels, strict=True)
        }

    def pixels(self, scene: Any) -> Tensor:
        """What the processor makes of the scene's picture, ``[3, H, W]``."""
        layout, numbers = self.mosaic.layout(scene), range(self.mosaic.cells)
        tiles = {cell: self._tiles[key] for cell, key in layout.items()}
        rows = [torch.cat([tiles.get((row, n), self._empty) for n in numbers], dim=2) for row in numbers]
        return torch.cat(rows, dim=1)

    def batch(self, scenes: Sequence[Any], sequences: Sequence[Tokens]) -> Batch:
        """Pad on the right to the longest sequence."""
        length = max(map(len, sequences))
        pad = self.ids[chat.PAD]
        ids = [[self.ids[word] for word, _ in tokens] for tokens in sequences]
        labels = [[self.ids[word] if learn else IGNORED for word, learn in tokens] for tokens in sequences]
        return Batch(
            torch.stack([self.pixels(scene) for scene in scenes]),
            torch.tensor([row + [pad] * (length - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
        )


def make_batch(
    encoder: Encoder, supply: Iterator[Any], rng: random.Random, write: Writer, size: int
) -> Batch:
    """One batch of new scenes, each written about in the same way."""
    scenes = [next(supply) for _ in range(size)]
    return encoder.batch(scenes, [write(scene, rng) for scene in scenes])
