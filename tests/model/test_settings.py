"""Configs of every image-text model that transformers has: taken, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from scale_export import UserError
from scale_export.model.base import open_base
from scale_export.model.settings import TIMM_BY_DEFAULT, Layer, Positive, Whole


def opened(directory: Path, config: dict[str, Any]) -> None:
    """Open a directory with that config and no weights of it, as far as a plan does before it reads weights."""
    save_file({"nothing.weight": torch.zeros(1)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    base = open_base(str(directory))
    assert base.spec.num_layers and base.skeleton


@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
def test_every_model_type_ends_in_a_sentence(tmp_path: Path, model_type: str):
    """By its defaults, and without weights: there is always something to refuse."""
    with pytest.raises(UserError) as refusal:
        opened(tmp_path, {"model_type": model_type})
    assert ("the library timm" in str(refusal.value)) == (model_type in TIMM_BY_DEFAULT)


@pytest.mark.parametrize(
    "config", [{"vision_config": {"model_type": "timm_wrapper"}}, {"use_timm_backbone": True}]
)
def test_towers_of_timm_are_refused_by_its_name(tmp_path: Path, config: dict[str, Any]):
    with pytest.raises(UserError, match="the library timm, whose towers are not supported"):
        opened(tmp_path, {"model_type": "llava", **config})


def test_rules_know_what_they_allow():
    assert Whole().allows(1) and not any(Whole().allows(wrong) for wrong in (0, True, 1.0, "1", None, [1]))
    assert (
        Whole(several=True).allows([16, 16])
        and not Whole(several=True).allows([])
        and Whole(absent=True).allows(None)
    )
    assert Positive().allows(1e-6) and not any(
        Positive().allows(wrong) for wrong in (0, -1.0, True, float("nan"), "1")
    )
    assert (
        Layer().allows(-2)
        and Layer().allows([1, -1])
        and not any(Layer().allows(wrong) for wrong in (0, [], "1", 1.5))
    )
