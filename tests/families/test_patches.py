"""Families whose pictures enter as patches: towers, rows and positions against Hugging Face's, and what breaks them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_window_index

from scale_export import UserError
from scale_export.backends.coreai.bundle import refuse_unserved
from scale_export.backends.coreml.backend import BACKEND as coreml
from scale_export.backends.processor import copy_processor
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array
from scale_export.core.resources import resource_dir
from scale_export.device.prompts import encode_messages, user_message
from scale_export.device.rules import GenerationRules
from scale_export.families import _patches, _pixtral, _qwen, qwen2_5_vl, qwen3_vl
from scale_export.families._family import Family
from scale_export.families._qwen import QwenVL
from scale_export.families._towers import (
    attention as _attention,
)
from scale_export.families._towers import (
    pixtral as _pixtral_tower,
)
from scale_export.families._towers import (
    qwen as _qwen_towers,
)
from scale_export.families._towers.qwen import WindowTower
from scale_export.families.llava_pixtral import LlavaPixtral
from scale_export.families.mistral3 import Mistral3
from scale_export.families.qwen2_5_vl import Qwen25VL
from scale_export.families.qwen3_vl import Qwen3VL
from scale_export.model.asking import answer_questions
from scale_export.model.base import BaseModel
from scale_export.model.folding import fold as fold_scalars
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target, load_target
from scale_export.proof.cases import forget_positions
from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.training.run import TrainOptions, run_training
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import emission_of, generator, opened, prompt, reference
from tests.helpers.folds import fold_on
from tests.helpers.image_path import PICTURES, hugging_face, inputs_of, logits_error, portable
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture

LIMIT = limits.FOLD_RELATIVE
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
PIXTRAL = ["mistral3", "llava_pixtral"]
PATCHED = [*QWEN, *PIXTRAL]
GRIDS = [(2, 48), (10, 14), (12, 12), (18, 8), (4, 4), (2, 2)]
"""Rows and columns of patches of one call's pictures, the largest of which fills a whole tower."""


def base_named(base_of: Any, family: str) -> BaseModel:
    base: BaseModel = base_of(family, "llama")
    return base


def prompts_of(family: str) -> list[str]:
    """Hugging Face fails on a Mistral 3 picture that is one token."""
    return [name for name in PICTURES if (family, name) != ("mistral3", "tiny")]


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in PATCHED for n in prompts_of(f)])
def test_features_lie_where_hugging_face_puts_them(base_of: Any, family: str, name: str):
    base = base_named(base_of, family)
    inputs = inputs_of(base, name)
    embeds, logits = hugging_face(base, inputs)
    asked = portable(base)
    assert relative_error(embeds, asked.embed_prompt(inputs).embeds) <= LIMIT
    assert relative_error(logits, asked.prefill(inputs).logits) <= LIMIT


def patches_of(base: BaseModel) -> dict[str, Array]:
    """What a processor gives for ``GRIDS``, of noise."""
    vision, rng = base.config.vision_config, np.random.default_rng(0)
    if base.family.model_type in PIXTRAL:
        sizes = np.array(GRIDS) * vision.patch_size
        pixels = rng.standard_normal((len(GRIDS), 3, *sizes.max(0)), np.float32)
        return {"pixel_values": pixels, "image_sizes": sizes}
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    count = sum(rows * columns for rows, columns in GRIDS)
    pixels = rng.standard_normal((count, width), np.float32)
    return {"pixel_values": pixels, "image_grid_thw": np.array([(1, *grid) for grid in GRIDS])}


@torch.no_grad()
def tower_rows(base: BaseModel, inputs: dict[str, Array], filling: int = 0) -> tuple[Array, Array | None]:
    """Features and deepstack by our tower, its pictures filled up with so many more places."""
    family, runtime = base.family, base.family.runtime_config(base.config)
    feeds = {
        name: np.pad(value, [(0, 0), (0, filling)] + [(0, 0)] * (value.ndim - 2))
        for name, value in family.tower_inputs(inputs, runtime).items()
    }
    tower = family.vision_module(base.model)
    outputs = {name: value.numpy() for name, value in tower(**_tensors(feeds)).items()}
    return family.pack(outputs, inputs, runtime), family.deepstack(outputs, inputs, runtime)


def _tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


@pytest.mark.parametrize("filling", [0, 5])
@pytest.mark.parametrize("family", PATCHED)
@torch.no_grad()
def test_towers_are_hugging_faces_on_every_grid(base_of: Any, family: str, filling: int):
    base = base_named(base_of, family)
    inputs = patches_of(base)
    found, deepstack = tower_rows(base, inputs, filling)
    expected = base.model.model.get_image_features(**_tensors(inputs), return_dict=True)
    assert relative_error(torch.cat(expected.pooler_output).numpy(), found) <= LIMIT
    if family == "qwen3_vl":
        assert deepstack is not None
        for theirs, ours in zip(expected.deepstack_features, deepstack, strict=True):
            assert relative_error(torch.cat(theirs).numpy(), ours) <= LIMIT


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        *(("mistral3", n) for n in (-2, 1, 3)),
        *(("llava_pixtral", n) for n in (-2, 1, 3, [-2], [1, 3], [0, -1, 2])),
    ],
)
@torch.no_grad()
def test_a_pixtral_tower_that_ends_early(tmp_path: Path, family: str, layer: int | list[int]):
    model = FAMILIES[family].but(config={"vision_feature_layer": layer})(directory=tmp_path)
    base = replace_model(tmp_path, model)
    inputs = patches_of(base)
    expected = model.model.get_image_features(**_tensors(inputs), return_dict=True).pooler_output
    assert relative_error(torch.cat(expected).numpy(), tower_rows(base, inputs)[0]) <= LIMIT


def replace_model(directory: Path, model: Any) -> BaseModel:
    from scale_export.model.base import open_base

    base = open_base(str(directory))
    base.__dict__["model"] = model
    return base


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("family", QWEN)
def test_positions_are_hugging_faces(base_of: Any, family: str, name: str):
    base = base_named(base_of, family)
    inputs = inputs_of(base, name)
    positions = base.family.positions(inputs, base.family.runtime_config(base.config))
    if name == "none":
        assert (positions == np.arange(positions.shape[2])).all()
        return
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    expected, delta = base.model.model.get_rope_index(**_tensors({n: inputs[n] for n in names}))
    assert (expected.numpy() == positions).all()
    assert positions.max() + 1 - positions.shape[2] == int(delta)


PUBLISHED_GRIDS = [(2, 400), (32, 32), (46, 60), (98, 4), (36, 54)]


def test_the_published_geometry():
    """Windows of 4 × 4 tokens, a table of 48 × 48 positions, and where tokens stand."""
    grid_thw = torch.tensor([(1, *grid) for grid in PUBLISHED_GRIDS])
    order, _ = get_vision_window_index(grid_thw, spatial_merge_size=2, window_size=112, patch_size=14)
    taps, shares = get_vision_interpolation_indices_and_weights(
        grid_thw, 48, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    ids = torch.cat([torch.tensor([1] + [7] * (h * w // 4)) for h, w in PUBLISHED_GRIDS])[None]
    model = SimpleNamespace(config=Qwen2_5_VLConfig())
    model.get_vision_position_ids = functools.partial(Qwen2_5_VLModel.get_vision_position_ids, model)
    expected, _ = Qwen2_5_VLModel.get_rope_index(model, ids, (ids == 7).int(), grid_thw)
    runtime = {"image_token_id": 7, "merge": 2}
    inputs = {"input_ids": ids.numpy(), "image_grid_thw": grid_thw.numpy()}
    assert (qwen2_5_vl.FAMILY.positions(inputs, runtime) == expected.numpy()).all()
    tokens = patches = 0
    for height, width in PUBLISHED_GRIDS:
        ours, window = qwen2_5_vl.by_window((height // 2, width // 2), 4)
        assert (ours + tokens == order[tokens : tokens + len(ours)].numpy()).all()
        assert np.bincount(window).max() <= 16
        found = [_patches.merged(v, 2).reshape(-1, 4) for v in _patches.interpolation((height, width), 48)]
        of_picture = slice(patches, patches + height * width)
        table = np.arange(48**2)  # entries beyond the last, of no share, may differ
        assert np.allclose((table[found[0]] * found[1]).sum(1), (taps * shares)[of_picture].sum(1), atol=1e-3)
        assert np.allclose(found[1], shares[of_picture], atol=1e-5)
        tokens, patches = tokens + len(ours), patches + height * width


def test_an_image_token_without_a_picture_counts_as_a_word(base_of: Any):
    base = base_named(base_of, "qwen2_vl")
    runtime = base.family.runtime_config(base.config)
    positions = base.family.positions({"input_ids": np.array([[9, runtime["image_token_id"], 8]])}, runtime)
    assert positions.tolist() == [[[0, 1, 2]]] * 3


@pytest.mark.parametrize("family", PATCHED)
def test_batches_answer_as_single_questions_do(base_of: Any, family: str):
    """Hugging Face's own ``generate``, left-padded: what the task leg compares with."""
    base = base_named(base_of, family)
    found = load_questions("gridworld", "calibration", limit=4)
    questions: list[Question] = [*found[:2], replace(found[2], pictures=()), found[3]]
    together = answer_questions(base.model, base.processor, questions, batch_size=4, max_new_tokens=4)
    alone = [answer_questions(base.model, base.processor, [q], max_new_tokens=4)[0] for q in questions]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


@pytest.mark.parametrize("family", PATCHED)
def test_answers_are_generates(base_of: Any, family: str):
    base = base_named(base_of, family)
    for question in load_questions("gridworld", "calibration", limit=2):
        answer = answer_questions(base.model, base.processor, [question], max_new_tokens=6)[0]
        inputs = encode_messages(
            base.processor, [user_message([question.image] if question.image else [], question.prompt)]
        )
        found = list(portable(base).stream(inputs, max_new_tokens=6, rules=GenerationRules(end_tokens=(2,))))
        assert found == [token for token in answer.token_ids if token != 2]


@torch.no_grad()
def test_a_prompt_without_picture_after_one_with(base_of: Any):
    """Hugging Face's model would go on from the positions of the last picture."""
    base = base_named(base_of, "qwen2_5_vl")
    hugging_face(base, inputs_of(base, "wide"))
    assert base.model.model.rope_deltas is not None
    forget_positions(base.model)
    assert base.model.model.rope_deltas is None


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_tiny_training_run(tmp_path: Path, family: str):
    FAMILIES[family]("llama", directory=tmp_path / "model")
    options = TrainOptions(steps=2, batch_size=4, evaluate_every=1, limit=8)
    report = run_training(tmp_path / "model", tmp_path / "spatial.safetensors", options)
    assert np.isfinite(report.result.mlp_scale).all()
    assert not (report.result.mlp_scale == 1).all()


# What breaks the pictures' way into the decoder.


def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's tokens one row further down than they are."""
    positions = QwenVL.positions

    def wrong(self: Any, inputs: Any, runtime: Any) -> Any:
        found = positions(self, inputs, runtime)
        found[1, inputs["input_ids"] == runtime["image_token_id"]] += 1
        return found

    monkeypatch.setattr(QwenVL, "positions", wrong)


def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count tokens."""

    def wrong(self: Any, inputs: Any, runtime: Any) -> Any:
        tokens = inputs["input_ids"].shape[1]
        return np.broadcast_to(np.arange(tokens), (3, 1, tokens)).copy()

    monkeypatch.setattr(QwenVL, "positions", wrong)


def axes_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows for columns in the decoder."""
    positions = QwenVL.positions
    monkeypatch.setattr(QwenVL, "positions", lambda *args: positions(*args)[[0, 2, 1]])


def patches_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch's row for its column in the tower."""
    turns = _patches.axial_turns

    def wrong(grid: Any, side: int, frequencies: Any) -> Any:
        found = turns((max(grid), max(grid)), 1, frequencies)
        rows, columns = _patches.merged(np.moveaxis(np.indices(grid), 0, -1), side).transpose(2, 0, 1)
        return tuple(values[:, 0][columns * max(grid) + rows] for values in found)

    for module in (_qwen, _pixtral):
        monkeypatch.setattr(module, "axial_turns", wrong)


def tokens_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's rows column by column."""
    packed = QwenVL.packed
    monkeypatch.setattr(QwenVL, "packed", lambda *args: packed(*args)[::-1])


def vision_heads_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = _attention.attend
    for module in (_qwen_towers, _pixtral_tower):
        monkeypatch.setattr(module, "attend", lambda q, k, v, mask: attend(q, k, v.flip(2), mask))


def windows_unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows left in the windows' order."""
    monkeypatch.setattr(Qwen25VL, "packed", QwenVL.packed)


def windows_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block sees whole pictures."""
    monkeypatch.setattr(WindowTower, "__init__", _without_windows(WindowTower.__init__))


def _without_windows(build: Any) -> Any:
    def wrong(self: Any, visual: Any) -> None:
        build(self, visual)
        self.whole = frozenset(range(len(visual.blocks)))

    return wrong


def windows_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of two tokens a side in place of three."""
    by_window = qwen2_5_vl.by_window
    monkeypatch.setattr(qwen2_5_vl, "by_window", lambda grid, side: by_window(grid, side - 1))


def neighbours_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that lie in two blocks are cut."""
    neighbours = _attention.with_neighbours

    def wrong(x: Tensor) -> Tensor:
        found = neighbours(x)
        size = x.shape[2]
        nothing = torch.zeros_like(found[:, :, :size]) - 1
        return torch.cat((nothing, found[:, :, size : 2 * size], nothing), dim=2)

    monkeypatch.setattr(_attention, "with_neighbours", wrong)


def deepstack_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3VL, "deepstack", lambda *args: None)


def deepstack_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer's features for the second's."""
    deepstack = Qwen3VL.deepstack
    monkeypatch.setattr(Qwen3VL, "deepstack", lambda *args: deepstack(*args)[::-1])


def positions_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned positions without interpolation."""
    interpolation = _patches.interpolation

    def wrong(grid: Any, side: int) -> Any:
        taps, shares = interpolation(grid, side)
        return taps, (shares == shares.max(-1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(qwen3_vl, "interpolation", wrong)


def merge_unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token's patches column by column."""
    merged = _patches.merged
    monkeypatch.setattr(_pixtral, "merged", lambda *args: merged(*args)[:, [0, 2, 1, 3]])


SABOTAGES = [
    *((family, "tall", breaks) for family in QWEN for breaks in (shifted, counted, axes_swapped)),
    *((family, "tall", patches_transposed) for family in PATCHED),
    *((family, "tall", vision_heads_swapped) for family in PATCHED),
    *((family, "tall", tokens_transposed) for family in ("qwen2_vl", "qwen3_vl")),
    ("qwen2_5_vl", "wide", windows_unordered),
    ("qwen2_5_vl", "wide", windows_forgotten),
    ("qwen2_5_vl", "wide", windows_shifted),
    ("qwen2_5_vl", "tall", neighbours_unseen),
    ("qwen3_vl", "wide", deepstack_dropped),
    ("qwen3_vl", "wide", deepstack_swapped),
    ("qwen3_vl", "wide", positions_nearest),
    ("mistral3", "wide", merge_unordered),
]


@pytest.mark.parametrize(
    ("family", "name", "breaks"),
    SABOTAGES,
    ids=[f"{family}-{breaks.__name__}" for family, _, breaks in SABOTAGES],
)
def test_what_breaks_a_picture_shows(
    base_of: Any, monkeypatch: pytest.MonkeyPatch, family: str, name: str, breaks: Any
):
    base = base_named(base_of, family)
    assert logits_error(base, name) <= LIMIT
    breaks(monkeypatch)
    assert logits_error(base, name) > 100 * LIMIT


@pytest.mark.parametrize("family", PATCHED)
def test_what_fills_a_picture_up_must_be_hidden(base_of: Any, monkeypatch: pytest.MonkeyPatch, family: str):
    base = base_named(base_of, family)
    inputs = patches_of(base)
    expected = tower_rows(base, inputs)[0]
    monkeypatch.setattr(_attention, "HIDDEN", 0.0)
    assert relative_error(expected, tower_rows(base, inputs)[0]) > 100 * LIMIT


# What a device can hold.


def narrow(name: str, side: int) -> Target:
    """A target whose tower takes squares of that side."""
    return load_target(name).model_copy(update={"max_tile_side": side})


def plan_for(base: BaseModel, target: Target) -> Plan:
    return make_plan(random_coefficients(base), base, target, ExportOptions(fold="gate"))


@pytest.mark.parametrize("family", PATCHED)
def test_a_device_that_takes_every_picture_leaves_the_processor_alone(base_of: Any, family: str):
    base = base_named(base_of, family)
    plan = plan_for(base, load_target("iphone"))
    assert plan.base is base
    places = {
        "qwen2_vl": 40,  # tokens
        "qwen2_5_vl": 5,  # of nine tokens
        "qwen3_vl": 40,
        "mistral3": 36,
        "llava_pixtral": 36,
    }[family]
    assert {i.shape[0] for i in plan.tower_inputs.values()} == {places}


@pytest.mark.parametrize("size", [(64, 48), (96, 40), (40, 96), (12, 10), (150, 110), (48, 48)])
@pytest.mark.parametrize("family", PATCHED)
def test_pictures_are_resized_to_what_a_device_takes(
    base_of: Any, family: str, size: tuple[int, int], tmp_path: Path
):
    """By the processor itself, from the package's own files."""
    base = base_named(base_of, family)
    plan = plan_for(base, narrow("iphone", 34))
    assert plan.base.picture_size is not None
    assert any("Pictures are resized to fit" in sentence for sentence in plan.decisions)
    copy_processor(plan.base, tmp_path)
    runtime, messages = base.family.runtime_config(base.config), [user_message([picture(0, size)], "?")]
    found = encode_messages(base.family.load_processor(tmp_path), messages)
    live = encode_messages(plan.base.processor, messages)
    assert {n: v.tolist() for n, v in found.items()} == {n: v.tolist() for n, v in live.items()}
    for name, values in base.family.tower_inputs(found, runtime).items():
        assert values.shape[2:] == plan.tower_inputs[name].shape[1:]
        assert values.shape[1] <= plan.tower_inputs[name].shape[0]
    for grid in found.get("image_grid_thw", found.get("image_sizes"))[:, -2:]:
        square = 8 if family in PIXTRAL else 2
        assert (grid % square == 0).all()
        wide, tall = grid[::-1] / max(size)
        assert 0.4 < (wide / tall) / (size[0] / size[1]) < 2.5, "its shape is kept, but for whole squares"


def test_older_settings_of_published_models_give_way(base_of: Any, tmp_path: Path):
    base = plan_for(base_named(base_of, "qwen2_vl"), narrow("iphone", 34)).base
    model = tmp_path / "model"
    model.mkdir()
    settings = {"min_pixels": 256, "max_pixels": 2560, "image_processor_type": "Qwen2VLImageProcessor"}
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    old = replace(base, checkpoint=_Elsewhere(model))
    copy_processor(old, tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == {"image_processor_type": "Qwen2VLImageProcessor", "size": base.picture_size}


class _Elsewhere:
    """A checkpoint of which only the directory is asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory


def test_a_context_holds_four_pictures(base_of: Any):
    target = load_target("cpu").model_copy(update={"context_length": 80})
    for family, size in (
        ("qwen2_vl", {"shortest_edge": 256, "longest_edge": 20 * 64}),
        ("mistral3", {"longest_edge": 4 * 8}),  # and a word at the end of every row
        ("llava_pixtral", {"longest_edge": 4 * 8}),
    ):
        assert plan_for(base_named(base_of, family), target).base.picture_size == size


def test_a_picture_that_no_tower_takes_is_refused(base_of: Any, tmp_path: Path):
    for family, sentence in (("qwen3_vl", "at least 256 pixels"), ("mistral3", "8 × 8 pixels")):
        with pytest.raises(UserError, match=sentence):
            plan_for(base_named(base_of, family), narrow("iphone", 7))
    base = base_named(base_of, "qwen2_vl")
    plan = plan_for(base, narrow("coreml", 34))
    folded = fold_scalars(plan.base.weights, plan.coefficients, "gate")
    names = coreml.emit(emission_of(plan, folded, precision="float32", vision_precision="float32"), tmp_path)
    engine = opened(coreml, {role: tmp_path / name for role, name in names.items()}, plan, strict=True)
    asked, small = generator(engine, plan.base, "gate"), prompt(plan.base, (30, 20))
    expected = reference(plan, folded).prefill(small).logits
    assert relative_error(expected, asked.prefill(small).logits) <= limits.LOWERING_RELATIVE["float32"]
    with pytest.raises(UserError, match=r"1\.94 times the patches"):
        asked.prefill(prompt(base, (150, 110)))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("qwen2_5_vl", "several axes"), ("mistral3", "its own shape"), ("llava_pixtral", "its own shape")],
)
def test_an_engine_of_square_pictures_is_refused(base_of: Any, family: str, reason: str):
    plan = plan_for(base_named(base_of, family), load_target("coreai"))
    with pytest.raises(UserError, match=reason):
        refuse_unserved(plan)


def test_several_feature_layers_are_refused(base_of: Any):
    config = base_named(base_of, "mistral3").config
    several = type(config)(**config.to_dict() | {"vision_feature_layer": [-1, -2]})
    with pytest.raises(UserError, match=r"vision_feature_layer \[-1, -2\]"):
        Mistral3().decoder_spec(several)


def test_llava_over_pixtral_that_drops_a_patch_is_refused(base_of: Any):
    config = base_named(base_of, "llava_pixtral").config
    dropping = type(config)(**config.to_dict() | {"vision_feature_select_strategy": "default"})
    with pytest.raises(UserError, match="leaves out a picture's first patch"):
        LlavaPixtral().decoder_spec(dropping)


def test_tile_families_have_no_patches(base_of: Any):
    family: Family = base_named(base_of, "llava").family
    assert not family.patched
    with pytest.raises(NotImplementedError):
        family.most_places(None, {})


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from PIL import Image
from scale_export import open_package
package = open_package(sys.argv[1])
images = [Image.open(path) for path in sys.argv[2:]]
print(repr(package.answer(images, "where is the circle ?", max_new_tokens=4)))
assert sys.modules["torch"] is None
"""


PHONE = {
    'name = "iphone"': 'name = "phone"',
    "max_tile_side = 448": "max_tile_side = 34",
    "max_kl = 0.01": "max_kl = 1.0",  # a random model's words are nearly alike
    "min_top1_agreement = 0.97": "min_top1_agreement = 0.0",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision"), [*((f, "float32") for f in PATCHED), ("qwen2_5_vl", "int8")]
)
def test_packages_verify_and_open_in_a_process_without_torch(
    base_of: Any, tmp_path: Path, family: str, precision: str
):
    """For a processor; and for a phone that takes smaller pictures than the model's own."""
    base, target = base_named(base_of, family), "cpu"
    if precision == "int8":
        text = (resource_dir("targets") / "iphone.toml").read_text()
        for old, new in PHONE.items():
            assert old in text
            text = text.replace(old, new)
        target = str(tmp_path / "phone.toml")
        Path(target).write_text(text)
    out = tmp_path / "package"
    coefficients = saved(random_coefficients(base), tmp_path)
    outcome = fold_on(base, coefficients, target, out=out, precision=precision, evaluation="none")
    assert outcome.passed, outcome.parity
    files = [tmp_path / f"{seed}.png" for seed in (0, 1)]
    for seed, file in enumerate(files):
        picture(seed, (150, 40 + 30 * seed)).save(file)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(out), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
