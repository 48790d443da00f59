"""The generic route: one model that goes it, checked as the families with files are, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, MllamaConfig, Ovis2Config, Qwen2MoeConfig

from scale_export import UserError
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array
from scale_export.families import GENERIC_ROUTE, family_names, load_family, resolve_family
from scale_export.families._generic import Generic, without_weights
from scale_export.families._text import text_spec
from scale_export.model.base import BaseModel, open_base
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.families import proof
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.image_path import PICTURES, hugging_face, inputs_of, portable
from tests.helpers.models import VIPLLAVA

LIMIT = limits.FOLD_RELATIVE


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    directory = tmp_path_factory.mktemp("vipllava")
    VIPLLAVA(directory=directory)
    return open_base(str(directory))


@pytest.fixture
def bare_model(base: BaseModel) -> Any:
    return without_weights(base.config)


def test_a_model_without_a_file_goes_the_generic_route(base: BaseModel):
    assert "vipllava" not in family_names()
    assert isinstance(base.family, Generic)
    assert base.family.generic
    assert not resolve_family("llava").generic


@pytest.mark.parametrize("name", PICTURES)
def test_features_lie_where_hugging_face_puts_them(base: BaseModel, name: str):
    inputs = inputs_of(base, name)
    embeds, logits = hugging_face(base, inputs)
    asked = portable(base)
    assert relative_error(embeds, asked.embed_prompt(inputs).embeds) <= LIMIT
    assert relative_error(logits, asked.prefill(inputs).logits) <= LIMIT


@pytest.mark.slow
def test_every_column_is_within_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(proof.FAMILIES, "vipllava", VIPLLAVA)
    errors = proof.proof("vipllava", tmp_path)
    for column, limit in proof.LIMITS.items():
        assert errors[column] <= limit, (column, errors[column])


@pytest.mark.slow
def test_a_package_opens_where_there_is_no_torch(base: BaseModel, tmp_path: Path):
    out = tmp_path / "package"
    file = saved(random_coefficients(base), tmp_path)
    outcome = fold_on(base, file, "cpu", out=out, precision="float32", evaluation="none")
    assert outcome.passed
    assert json.loads((out / "manifest.json").read_text())["generic"] is True
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx'): sys.modules[name] = None\n"
        "from scale_export import open_package\n"
        "from PIL import Image\n"
        f"print(open_package({str(out)!r}).logits([Image.new('RGB', (64, 48))], 'where ?').shape)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "(1, 320)"


# What has no place.


def test_a_module_beside_tower_and_projector(base: BaseModel, bare_model: Any):
    bare_model.model.resampler = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"model\.resampler of VipLlavaForConditionalGeneration has no place"):
        base.family.check_structure(bare_model, base.spec, "llama")  # type: ignore[attr-defined]


def test_a_parameter_of_the_model_itself(base: BaseModel, bare_model: Any):
    bare_model.model.image_newline = nn.Parameter(torch.zeros(64))
    with pytest.raises(UserError, match=r"model\.image_newline of Vip"):
        base.family.check_structure(bare_model, base.spec, "llama")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["cross_attn", "post_feedforward_layernorm"])
def test_a_module_inside_a_layer(base: BaseModel, bare_model: Any, name: str):
    """Cross attention, or a norm that the config says nothing of."""
    layer = bare_model.model.language_model.layers[1]
    layer.add_module(name, nn.Linear(64, 64, bias=False, device="meta"))
    words = rf"the weight model\.language_model\.layers\.1\.{name}\.weight of Vip\w+ has no place"
    with pytest.raises(UserError, match=words):
        base.family.check_structure(bare_model, base.spec, "llama")  # type: ignore[attr-defined]


def test_a_layer_without_a_weight_that_the_decoder_reads(base: BaseModel, bare_model: Any):
    bare_model.model.language_model.layers[0].mlp.gate_proj = nn.Identity()
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj\.weight of Vip\w+ is missing"):
        base.family.check_structure(bare_model, base.spec, "llama")  # type: ignore[attr-defined]


def test_a_weight_of_another_shape(base: BaseModel, bare_model: Any):
    bare_model.model.language_model.layers[0].self_attn.k_proj = nn.Linear(64, 32, bias=False, device="meta")
    with pytest.raises(UserError, match=r"k_proj\.weight is \[32, 64\], not \[64, 64\]"):
        base.family.check_structure(bare_model, base.spec, "llama")  # type: ignore[attr-defined]


def test_a_text_model_of_another_class(base: BaseModel, bare_model: Any):
    with pytest.raises(UserError, match=r"model\.language_model is LlamaModel, not the text model that its"):
        base.family.check_structure(bare_model, base.spec, "mistral")  # type: ignore[attr-defined]


def test_models_of_transformers_that_are_refused_by_name():
    with pytest.raises(UserError, match=r"text model 'mllama_text_model' is not supported"):
        Generic("mllama").decoder_spec(MllamaConfig(image_token_index=1))
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {"model_type": "qwen2", "vocab_size": 8, "num_key_value_heads": 1, **small}
    config = Ovis2Config(text_config=text, vision_config={**small, "image_size": 28}, image_token_id=1)
    assert type(without_weights(config)) in AutoModelForImageTextToText._model_mapping.values()
    with pytest.raises(UserError, match=r"model\.visual_embeddings_table of Ovis2\w+ has no place"):
        Generic("ovis2").decoder_spec(config)


def test_mixtures_of_experts_are_not_proved():
    with pytest.raises(UserError, match=r"'qwen2_moe' is a mixture of experts, which is not supported"):
        text_spec(Qwen2MoeConfig())


def test_model_types_that_nothing_knows():
    with pytest.raises(UserError, match=r"model type 'lava' is not supported \(did you mean 'llava'"):
        resolve_family("lava")
    with pytest.raises(UserError, match=r"model type 'vipllava' is not supported"):
        load_family("vipllava")


@pytest.mark.parametrize("missing", ["text_config", "vision_config", "image_token_id"])
def test_configs_without_the_common_parts(missing: str):
    parts = {"text_config": 1, "vision_config": 1, "image_token_id": 1, missing: None}
    with pytest.raises(UserError, match=f"its config has no {missing}"):
        Generic("other").decoder_spec(type("Config", (), parts)())


def test_inputs_that_have_no_place(base: BaseModel):
    inputs: dict[str, Array] = inputs_of(base, "two")
    with pytest.raises(UserError, match="its processor gives image_sizes beside pixels and words"):
        base.family.tiles(inputs | {"image_sizes": np.array([[48, 48]])})
    with pytest.raises(UserError, match=r"gives pixels of shape \[2, 1, 3, 48, 48\]"):
        base.family.tiles(inputs | {"pixel_values": inputs["pixel_values"][:, None]})


def test_pictures_that_keep_their_proportions(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    pictures = base.processor.image_processor
    plan = make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions())
    assert any("vipllava has no file of its own" in sentence for sentence in plan.decisions)
    monkeypatch.setattr(pictures, "do_center_crop", False)
    with pytest.raises(UserError, match=r"a wide picture 48 × 96 pixels and a square one 48 × 48"):
        make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions())


def test_features_of_another_shape(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    tower = base.family.vision_module(base.model)
    assert not any("language_model" in name for name, _ in tower.named_modules())
    assert hasattr(base.model.model, "language_model"), "the model itself keeps its decoder"
    flat = nn.Flatten()
    projector = base.model.model.multi_modal_projector
    handle = projector.register_forward_hook(lambda module, args, output: flat(output))
    with pytest.raises(UserError, match=r"image features that are not \[pictures, tokens, width\]"):
        tower(torch.zeros(1, 3, 48, 48))
    handle.remove()


def test_what_the_command_says_of_it():
    found = subprocess.check_output([sys.executable, "-m", "scale_export", "families", "--json"], text=True)
    assert json.loads(found.splitlines()[-1])["generic"] == GENERIC_ROUTE
