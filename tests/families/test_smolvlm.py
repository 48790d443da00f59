"""SmolVLM's and Idefics3's image path against Hugging Face's, and what breaks it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMModel
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from scale_export import UserError
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array
from scale_export.device.generation import Inputs
from scale_export.device.prompts import user_message
from scale_export.families._towers.idefics import FullTiles
from scale_export.families.smolvlm import FAMILY, SmolVLM
from scale_export.model.base import BaseModel
from tests.helpers.decoding import embeddings_of
from tests.helpers.image_path import PICTURES, inputs_of, portable
from tests.helpers.models import SMOLVLM_TILE, TOWER
from tests.helpers.pictures import picture

LIMIT = limits.FOLD_RELATIVE


@pytest.fixture
def base(base_of: Any) -> BaseModel:
    return base_of("smolvlm", "llama")


@torch.no_grad()
def errors(base: BaseModel, inputs: Inputs) -> tuple[float, float]:
    """Of the prompt's embeddings, features in place, and of the logits after it."""
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    embeds, logits = embeddings_of(base, tensors), base.model(**tensors).logits[:, -1]
    asked = portable(base)
    found = asked.embed_prompt(inputs).embeds, asked.prefill(inputs).logits
    return relative_error(embeds.numpy(), found[0]), relative_error(logits.numpy(), found[1])


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("name", PICTURES)
def test_features_lie_where_hugging_face_puts_them(base_of: Any, family: str, name: str):
    base = base_of(family, "llama")
    assert max(errors(base, inputs_of(base, name))) <= LIMIT


@torch.no_grad()
def test_prompts_of_unequally_many_tiles_in_one_batch(base: BaseModel):
    """The processor fills the shorter prompt with tiles of zeros, which give no rows."""
    sizes: list[list[tuple[int, int]]] = [[(48, 48)], [(96, 40)], [(40, 96), (30, 30)]]
    chats = [[user_message([picture(size=s) for s in prompt], "where ?")] for prompt in sizes]
    inputs = base.processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        processor_kwargs={"padding": True},
    )
    pixels, mask = (torch.tensor(inputs[name]) for name in ("pixel_values", "pixel_attention_mask"))
    assert pixels.shape[:2] == (3, 8)
    expected = torch.cat(base.model.model.get_image_features(pixels, mask).pooler_output).numpy()
    tiles = FAMILY.tiles(inputs)
    assert len(tiles) == 5 + 3 + 8
    outputs = FAMILY.vision_module(base.model)(torch.from_numpy(tiles))
    found = FAMILY.pack({name: value.numpy() for name, value in outputs.items()}, inputs, {})
    assert len(found) == (inputs["input_ids"] == base.config.image_token_id).sum()
    assert relative_error(expected, found) <= LIMIT


def model_of(image_size: int, patch_size: int, scale: int) -> SmolVLMForConditionalGeneration:
    torch.manual_seed(0)
    config = SmolVLMConfig(
        vision_config={**TOWER, "image_size": image_size, "patch_size": patch_size},
        text_config=LlamaConfig(
            vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=1, pad_token_id=0
        ),
        image_token_id=7,
        scale_factor=scale,
    )
    return SmolVLMForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("side", "scale"), [(4, 2), (19, 1), (25, 5), (26, 2), (27, 3), (32, 4)])
@torch.no_grad()
def test_positions_of_a_full_tile_are_hugging_faces(side: int, scale: int):
    """Those of 19 and 25 patches a side repeat; 26, 27 and 32 are those of published models."""
    model = model_of(2 * side, 2, scale)
    inner: SmolVLMModel = model.model
    inner.vision_model.embeddings.position_embedding.weight.normal_(std=2)
    pixels = torch.randn(2, 1, 3, 2 * side, 2 * side)
    expected = torch.cat(inner.get_image_features(pixels).pooler_output).numpy()
    tower = FAMILY.vision_module(model)
    assert isinstance(tower, FullTiles)
    found = tower(pixels[:, 0])["image_features"].flatten(0, 1).numpy()
    assert relative_error(expected, found) <= LIMIT
    in_order = inner.vision_model.embeddings.position_embedding.weight
    assert torch.equal(in_order, tower.positions[0]) == (side not in (19, 25))
    if side == 25:
        tower.positions = in_order[None]
        wrong = tower(pixels[:, 0])["image_features"].flatten(0, 1).numpy()
        assert relative_error(expected, wrong) > 100 * LIMIT


def wide(base: BaseModel) -> float:
    return errors(base, inputs_of(base, "wide"))[1]


def test_the_whole_picture_before_its_tiles(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    tiles = SmolVLM.tiles
    monkeypatch.setattr(SmolVLM, "tiles", lambda self, inputs: np.roll(tiles(self, inputs), 1, axis=0))
    assert wide(base) > 100 * LIMIT


@pytest.mark.parametrize("shift", [1, 6])
def test_positions_shifted_by_a_patch_or_a_row(base: BaseModel, monkeypatch: pytest.MonkeyPatch, shift: int):
    vision_module = SmolVLM.vision_module

    def shifted(self: SmolVLM, model: Any) -> Any:
        tower: Any = vision_module(self, model)
        tower.positions = tower.positions.roll(shift, dims=1)
        return tower

    monkeypatch.setattr(SmolVLM, "vision_module", shifted)
    assert wide(base) > 100 * LIMIT


def test_a_pixel_shuffle_that_goes_down_before_it_goes_right(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    class ColumnsFirst(torch.nn.Module):
        def __init__(self, connector: SmolVLMConnector):
            super().__init__()
            self.connector = connector

        def forward(self, patches: Tensor) -> Tensor:
            side = int(patches.shape[1] ** 0.5)
            turned = patches.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
            rows: Tensor = self.connector(turned)
            return rows

    vision_module = SmolVLM.vision_module

    def turned(self: SmolVLM, model: Any) -> Any:
        tower: Any = vision_module(self, model)
        tower.connector = ColumnsFirst(tower.connector)
        return tower

    monkeypatch.setattr(SmolVLM, "vision_module", turned)
    assert wide(base) > 100 * LIMIT


def test_tiles_that_the_tower_has_no_positions_for(base: BaseModel):
    inputs = inputs_of(base, "wide")
    mask: Array = inputs["pixel_attention_mask"].copy()
    mask[0, 1, :, SMOLVLM_TILE // 2 :] = 0
    with pytest.raises(UserError, match=r"leaves out a part of a tile"):
        FAMILY.tiles(inputs | {"pixel_attention_mask": mask})
    larger = torch.zeros(1, 3, 2 * SMOLVLM_TILE, SMOLVLM_TILE)
    with pytest.raises(UserError, match=r"48 × 24 pixels and the tower takes 24 × 24: set max_image_size"):
        FAMILY.vision_module(base.model)(larger)
