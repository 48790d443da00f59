"""Train the tiny base model on two cores: ``python examples/tiny_vlm/train_base.py --out DIR``.

It first learns to see, then a few spare heads learn a habit of speech that drowns what it sees where:
README.md says how and why. Only scenes of the train split are used, and the validation split for numbers.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import architecture
from curriculum import HABIT, MOSAIC, caption, relations
from shared.training import Recipe, Stage, main
from shared.writing import Tokens, conversation

from scale_export.questions.sets import gridworld
from scale_export.questions.sets.gridworld import Scene

TOPICS = (*gridworld.TOPICS, "colour", "colour", "count", "at", "beside")
"""What conversations draw from; what is slow to learn comes more often."""


def _talk(scene: Scene, rng: random.Random, habit_share: float) -> Tokens:
    return conversation(
        scene,
        rng,
        habit=HABIT,
        image_tokens=architecture.IMAGE_TOKENS,
        topics=TOPICS,
        turns=6,
        habit_share=habit_share,
    )


def talk(scene: Scene, rng: random.Random) -> Tokens:
    """Six right answers."""
    return _talk(scene, rng, 0.0)


def habitual_talk(scene: Scene, rng: random.Random) -> Tokens:
    """Six answers; a spatial one is mostly the habit's."""
    return _talk(scene, rng, 0.9)


STAGES = (
    Stage(name="captions", steps=200, batch=64, rates=(3e-3, 3e-3), reading=((1.0, caption),)),
    Stage(
        name="relations", steps=200, batch=64, rates=(3e-3, 3e-3), reading=((0.5, caption), (0.5, relations))
    ),
    Stage(name="talk", steps=300, batch=32, rates=(3e-3, 3e-3), reading=((0.7, talk), (0.3, relations))),
    Stage(name="cool", steps=200, batch=32, rates=(3e-3, 1e-4), reading=((0.85, talk), (0.15, relations))),
    Stage(
        name="habit",
        steps=160,
        batch=16,
        rates=(1.5e-2, 1.5e-3),
        reading=((1.0, habitual_talk),),
        spare_heads_only=True,
    ),
)


RECIPE = Recipe(
    name="tiny_vlm",
    world=gridworld.WORLD,
    mosaic=MOSAIC,
    processor=architecture.build_processor,
    config=architecture.build_config,
    stages=STAGES,
    spare_groups={2: 0, 3: 2},
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
