"""Train the small base model on one core: ``python examples/small_vlm/train_base.py --out DIR``.

As the tiny model, it first learns to see, then a few spare heads learn a habit of speech: README.md says how. Only
scenes of the train split are used, and the validation split for numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import architecture
import torch
from curriculum import MOSAIC, caption, habitual_talk, relations, talk
from shared.training import Recipe, Stage, main
from transformers import LlavaForConditionalGeneration

from scale_export.questions.sets import atlas

RATE = 2.5e-3


def add_rows_and_columns(model: LlavaForConditionalGeneration) -> None:
    """Add to each tile's position vector one that its row shares and one that its column shares."""
    table = model.get_parameter("model.vision_tower.embeddings.position_embedding.weight").data
    side, random = atlas.SIDE, torch.Generator().manual_seed(0)
    rows, columns = 0.5 * torch.randn(2, side, table.shape[1], generator=random)
    table += (rows[:, None] + columns[None]).reshape(table.shape)


STAGES = (
    Stage(name="captions", steps=300, batch=32, rates=(RATE, RATE), reading=((1.0, caption),)),
    Stage(
        name="relations",
        steps=200,
        batch=24,
        rates=(RATE, RATE),
        reading=((0.35, caption), (0.65, relations)),
    ),
    Stage(
        name="places",
        steps=160,
        batch=24,
        rates=(RATE, RATE),
        reading=((0.5, caption), (0.5, relations)),
        before=add_rows_and_columns,
    ),
    Stage(name="talk", steps=240, batch=24, rates=(RATE, 1e-4), reading=((0.65, talk), (0.35, relations))),
    Stage(
        name="habit",
        steps=60,
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
    looks=256,
)

if __name__ == "__main__":
    main(RECIPE, __doc__)
