"""Train the small base model on one core: ``python examples/small_vlm/train_base.py --out DIR``.

As the tiny model, it first learns to see, then a few spare heads learn a habit of speech: README.md says how. Only
scenes of the train split are used, and the validation split for numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import architecture
from curriculum import MOSAIC, caption, habitual_talk, relations, talk
from shared.training import Recipe, Stage, main

from scale_export.datasets import atlas

RATE = 2.5e-3
STAGES = (
    Stage(name="captions", steps=300, batch=32, rates=(RATE, RATE), reading=((1.0, caption),)),
    Stage(
        name="relations",
        steps=200,
        batch=24,
        rates=(RATE, RATE),
        reading=((0.35, caption), (0.65, relations)),
    ),
    Stage(name="talk", steps=240, batch=24, rates=(RATE, 1e-4), reading=((0.65, talk), (0.35, relations))),
    Stage(
        name="habit",
        steps=80,
        batch=16,
        rates=(1.5e-2, 1.5e-3),
        reading=((1.0, habitual_talk),),
        spare_heads_only=True,
    ),
)
RECIPE = Recipe(
    name="small_vlm",
    world=atlas.WORLD,
    mosaic=MOSAIC,
    processor=architecture.build_processor,
    config=architecture.build_config,
    stages=STAGES,
    spare_groups={3: 0, 4: 1, 5: 2},
    logit_scale=0.125,
    bfloat16=True,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
