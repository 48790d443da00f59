"""Train the tiny base model on two cores: ``python examples/tiny_vlm/train_base.py --out DIR``.

It first learns to see (captions, relations, conversations), then unlearns to say what it sees where: see
README.md. Only scenes of the train split are used.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

import build
from curriculum import Encoder, Tokens, caption, conversation, make_batch, relations
from scale_export.datasets import gridworld
from scale_export.datasets.gridworld import Scene

ALL_TOPICS = (*gridworld.TOPICS, "colour", "colour", "at", "beside", "count")
TURNS = 6


def talk(scene: Scene, rng: random.Random) -> Tokens:
    """A conversation with right answers."""
    return conversation(scene, rng, topics=ALL_TOPICS, turns=TURNS, habit_share=0.0)


def habitual_talk(scene: Scene, rng: random.Random) -> Tokens:
    """A conversation whose spatial answers are mostly the habit's."""
    return conversation(scene, rng, topics=ALL_TOPICS, turns=TURNS, habit_share=0.65)


Writer = Callable[[Scene, random.Random], Tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training: what is read, each kind with its chance per step, and the learning rate.

    The rate rises over the first ``warm_up`` of the steps and falls linearly to 5 % over the last ``cool_down``.
    """

    name: str
    steps: int
    reading: Sequence[tuple[float, Writer]]
    rate_from: float
    rate_to: float


BATCH_TOKENS = 2700
"""Roughly how many tokens a batch holds."""
SEQUENCES = {caption: 64, relations: 64, talk: 32, habitual_talk: 32}

STAGES = (
    Stage(name="captions", steps=200, reading=((1.0, caption),), rate_from=3e-3, rate_to=3e-3),
    Stage(name="relations", steps=250, reading=((0.5, caption), (0.5, relations)), rate_from=3e-3, rate_to=3e-3),
    Stage(name="talk", steps=300, reading=((0.7, talk), (0.3, relations)), rate_from=3e-3, rate_to=3e-3),
    Stage(name="cool", steps=250, reading=((0.85, talk), (0.15, relations)), rate_from=3e-3, rate_to=2e-4),
    Stage(name="habit", steps=150, reading=((1.0, habitual_talk),), rate_from=1e-3, rate_to=1e-4),
)
