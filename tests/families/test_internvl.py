"""InternVL's image path against Hugging Face's, and what breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2MoeConfig

from scale_export import UserError
from scale_export.backends.coreai.bundle import refuse_unserved
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.families._towers.tower import ShuffledFeatures
from scale_export.families.internvl import FAMILY, InternVL
from scale_export.model.base import BaseModel
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients
from tests.helpers.image_path import PICTURES, hugging_face, inputs_of, logits_error, portable
from tests.helpers.models import FAMILIES

LIMIT = limits.FOLD_RELATIVE


@pytest.fixture
def base(base_of: Any) -> BaseModel:
    return base_of("internvl", "qwen2")


@pytest.mark.parametrize("name", PICTURES)
def test_features_lie_where_hugging_face_puts_them(base: BaseModel, name: str):
    inputs = inputs_of(base, name)
    embeds, logits = hugging_face(base, inputs)
    asked = portable(base)
    assert relative_error(embeds, asked.embed_prompt(inputs).embeds) <= LIMIT
    assert relative_error(logits, asked.prefill(inputs).logits) <= LIMIT


@pytest.mark.parametrize(
    ("layer", "vision"),
    [
        (-2, {}),
        (2, {}),
        (-1, {"use_mean_pooling": False}),
        (-1, {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": True}),
        (-1, {"use_absolute_position_embeddings": False}),
        (-1, {"image_size": [48, 48]}),
    ],
)
@torch.no_grad()
def test_towers_of_every_kind(tmp_path: Path, layer: int, vision: dict[str, Any]):
    model = FAMILIES["internvl"].but(config={"vision_feature_layer": layer}, vision=vision)(
        directory=tmp_path
    )
    size = vision.get("image_size", [32, 32])
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = model.model.get_image_features(pixels).pooler_output
    found = FAMILY.vision_module(model)(pixels)["image_features"]
    assert relative_error(expected.numpy(), found.numpy()) <= LIMIT


def test_the_whole_picture_before_its_tiles(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(InternVL, "tiles", lambda self, inputs: np.roll(inputs["pixel_values"], 1, axis=0))
    assert logits_error(base, "wide") > 100 * LIMIT


def test_a_pixel_shuffle_that_goes_down_before_it_goes_right(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    def columns_first(self: ShuffledFeatures, patches: Tensor) -> Tensor:
        factor, side, width = self.factor, self.side // self.factor, patches.shape[-1]
        squares = patches.reshape(-1, side, factor, side, factor, width).permute(0, 1, 3, 4, 2, 5)
        return squares.reshape(-1, side * side, factor * factor * width)

    monkeypatch.setattr(ShuffledFeatures, "shuffled", columns_first)
    assert logits_error(base, "wide") > 100 * LIMIT


def test_what_is_not_supported_is_refused(base: BaseModel):
    fields = base.config.to_dict()
    for change, sentence in [
        ({"text_config": Qwen2MoeConfig().to_dict()}, r"text model 'qwen2_moe' is a mixture of experts"),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer \[-1, -2\]"),
        ({"vision_feature_select_strategy": "full"}, r"vision_feature_select_strategy 'full'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            FAMILY.decoder_spec(type(base.config)(**fields | change))


def test_an_engine_that_shows_one_whole_picture_is_refused(base: BaseModel):
    plan = make_plan(random_coefficients(base), base, load_target("coreai"), ExportOptions(fold="gate"))
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        refuse_unserved(plan)
