"""LLaVA-OneVision's image path against Hugging Face's, and what breaks it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from scale_export import UserError
from scale_export.backends.coreai.bundle import refuse_unserved
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array
from scale_export.families import llava_onevision
from scale_export.families.llava_onevision import FAMILY, LlavaOnevision
from scale_export.model.base import BaseModel
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients
from tests.helpers.image_path import PICTURES, hugging_face, inputs_of, logits_error, portable
from tests.helpers.pictures import picture

LIMIT = limits.FOLD_RELATIVE


@pytest.fixture
def base(base_of: Any) -> BaseModel:
    return base_of("llava_onevision", "qwen2")


@pytest.mark.parametrize("name", PICTURES)
def test_features_lie_where_hugging_face_puts_them(base: BaseModel, name: str):
    inputs = inputs_of(base, name)
    embeds, logits = hugging_face(base, inputs)
    asked = portable(base)
    assert relative_error(embeds, asked.embed_prompt(inputs).embeds) <= LIMIT
    assert relative_error(logits, asked.prefill(inputs).logits) <= LIMIT


@pytest.mark.parametrize(
    ("name", "grid"), [("wide", (3, 6)), ("large", (3, 5))], ids=["as it is", "of 4 × 6 places, shrunk"]
)
def test_only_grids_that_are_too_large_are_shrunk(base: BaseModel, name: str, grid: tuple[int, int]):
    ids = inputs_of(base, name)["input_ids"]
    overview, (rows, columns) = 9, grid
    assert (ids == base.config.image_token_id).sum() == overview + rows * (columns + 1)


def test_prompts_with_one_and_with_several_pictures_in_a_batch(base: BaseModel):
    one, two, three = (picture(seed, size) for seed, size in enumerate([(96, 40), (64, 48), (30, 90)]))
    inputs = base.processor(
        images=[[one], [two, three]],
        text=["<image> a", "<image><image> b"],
        padding=True,
        return_tensors="np",
    )
    tensors = {
        name: torch.tensor(inputs[name]) for name in ("pixel_values", "image_sizes", "batch_num_images")
    }
    outputs = portable(base).engine.vision(FAMILY.tower_inputs(inputs, {}))
    found = FAMILY.pack(outputs, inputs, FAMILY.runtime_config(base.config))
    with torch.no_grad():
        tensors["pixel_values"] = torch.cat(  # Hugging Face splits by its own count, padding left aside
            [tensors["pixel_values"][0], tensors["pixel_values"][1:, 0]]
        )
        expected = torch.cat(base.model.model.get_image_features(**tensors).pooler_output).numpy()
    assert relative_error(expected, found) <= LIMIT


@pytest.mark.parametrize("size", [(384, 384), (700, 1000), (500, 3000), (2304, 2300), (90, 40)])
def test_the_published_geometry(size: tuple[int, int]):
    """Tiles of 27 × 27 places, grids up to 6 × 6, at most nine tiles' worth of rows."""
    config = LlavaOnevisionConfig()
    count = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
    rng = np.random.default_rng(0)
    features, newline = rng.standard_normal((count, 27 * 27, 4), np.float32), np.ones(4, np.float32)
    expected, _ = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config), [torch.from_numpy(features)], [size], torch.from_numpy(newline)
    )
    found = FAMILY.pack(
        {"image_features": features, "image_newline": newline},
        {"image_sizes": np.array([size]), "batch_num_images": np.array([1])},
        FAMILY.runtime_config(config),
    )
    assert relative_error(expected[0].numpy(), found) <= LIMIT


@pytest.mark.parametrize(("old", "new"), [(5, 3), (6, 4), (54, 31), (3, 2), (2, 1)])
def test_interpolation_is_torchs(old: int, new: int):
    plane = np.random.default_rng(0).standard_normal((old, old + 2, 4), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(plane).permute(2, 0, 1)[None], [new, new + 1], mode="bilinear"
    )[0].permute(1, 2, 0)
    found = llava_onevision.interpolate(plane, new, axis=0)
    found = llava_onevision.interpolate(found, new + 1, axis=1)
    assert found.dtype == np.float32
    assert relative_error(expected.numpy(), found) <= LIMIT


def test_tiles_in_another_order(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    tiles = LlavaOnevision.tiles
    monkeypatch.setattr(LlavaOnevision, "tiles", lambda self, inputs: tiles(self, inputs)[[0, 2, 1]])
    assert logits_error(base, "wide") > 100 * LIMIT


@pytest.mark.parametrize("name", ["wide", "two"])
def test_rows_that_end_without_a_newline(base: BaseModel, monkeypatch: pytest.MonkeyPatch, name: str):
    pack = LlavaOnevision.pack

    def without(self: Any, outputs: Any, inputs: Any, runtime: Any) -> Array:
        return pack(self, {**outputs, "image_newline": 0 * outputs["image_newline"]}, inputs, runtime)

    monkeypatch.setattr(LlavaOnevision, "pack", without)
    assert logits_error(base, name) > 100 * LIMIT


def test_a_grid_shrunk_by_leaving_places_out(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    def nearest(plane: Array, length: int, *, axis: int) -> Array:
        return plane.take(np.arange(length) * plane.shape[axis] // length, axis)

    monkeypatch.setattr(llava_onevision, "interpolate", nearest)
    assert logits_error(base, "large") > 100 * LIMIT


@pytest.mark.parametrize("kind", ["square", "anyres", "pad"])
def test_an_aspect_rule_that_hugging_face_lacks_is_refused(base: BaseModel, kind: str):
    config = type(base.config)(**base.config.to_dict() | {"vision_aspect_ratio": kind})
    with pytest.raises(UserError, match=r"vision_aspect_ratio .* supported: anyres_max_N"):
        FAMILY.decoder_spec(config)


def test_an_engine_that_shows_one_whole_picture_is_refused(base: BaseModel):
    plan = make_plan(random_coefficients(base), base, load_target("coreai"), ExportOptions(fold="gate"))
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        refuse_unserved(plan)
