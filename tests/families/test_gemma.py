"""Gemma 3 and PaliGemma: pictures and prompts that see themselves, norms after the MLP, and what breaks them."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3Config, PaliGemmaConfig

from scale_export import UserError
from scale_export.backends.coreai.bundle import refuse_unserved
from scale_export.backends.coreml import decoder as coreml_decoder
from scale_export.backends.coreml.backend import BACKEND as coreml
from scale_export.coefficients.file import load_coefficients
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array, DecoderSpec, Float32
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.engine import Scalars
from scale_export.device.generation import Generator, Inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.families import load_family, paligemma
from scale_export.families._text import text_spec
from scale_export.families._towers.gemma import PooledProjector
from scale_export.model.base import BaseModel, open_base
from scale_export.model.engine import ReferenceEngine
from scale_export.model.folding import Factor, FoldedWeights, fold, fold_factors
from scale_export.model.hooks import attach, attach_trainable
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.cases import FORCED_STEPS, _path, parity_prompts
from scale_export.questions import load_questions
from scale_export.training.examples import encode_examples
from scale_export.training.loop import FullScorer, PrefixScorer
from scale_export.training.options import silent
from scale_export.training.prefix import PrefixStore, can_cache_prefix
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import TOKENS, emission_of, generator, prompt, reference
from tests.helpers.folds import fold_on
from tests.helpers.image_path import PICTURES, hugging_face, inputs_of, portable
from tests.helpers.models import FAMILIES, GEMMA_WINDOW, SIZE
from tests.helpers.pictures import picture
from tests.helpers.training import EXACT, PAD, loss_and_gradient, scalars

LIMIT = limits.FOLD_RELATIVE
GEMMAS = ("gemma3", "paligemma")
PICTURE_TOKENS = 9

CASES = [
    (family, name)
    for family in GEMMAS
    for name in PICTURES
    if name != "none" or family == "gemma3"  # PaliGemma's processor takes no prompt without a picture
]


@pytest.fixture
def gemma3(base_of: Any) -> BaseModel:
    return base_of("gemma3", "own")


@pytest.fixture
def pali(base_of: Any) -> BaseModel:
    return base_of("paligemma", "own")


def gated(base: BaseModel, weights: Any = None, scalars: Scalars | None = None) -> Generator:
    """The portable decoder with the scalars of ``random_coefficients`` as a gate, or with folded ``weights``."""
    attn, mlp = random_coefficients(base).dense(base.spec.num_layers, base.spec.num_heads)
    engine = ReferenceEngine(
        weights or base.weights,
        scaled=None,
        vision=base.family.vision_module(base.model),
        image_token_id=base.family.image_token_id(base.config),
        gate=None if weights else ("last", scalars or Scalars(attn=attn, mlp=mlp)),
    )
    return generator(engine, base, "gate")


@torch.no_grad()
def hooked(base: BaseModel, inputs: Inputs, **chosen: Any) -> Float32:
    """Logits ``[1, V]`` after the prompt of the Hugging Face model with ScAle."""
    with attach(base.model, random_coefficients(base, **chosen)):
        output = base.model(**{name: torch.tensor(value) for name, value in inputs.items()})
    logits: Float32 = output.logits[:, -1].numpy()
    return logits


# The image path and the attention that goes with it.


@pytest.mark.parametrize(("family", "name"), CASES)
def test_features_lie_where_hugging_face_puts_them(base_of: Any, family: str, name: str):
    base = base_of(family, "own")
    inputs = inputs_of(base, name)
    embeds, logits = hugging_face(base, inputs)
    asked = portable(base)
    assert relative_error(embeds, asked.embed_prompt(inputs).embeds) <= LIMIT
    assert relative_error(logits, asked.prefill(inputs).logits) <= LIMIT


def test_pictures_are_longer_than_a_local_window(gemma3: BaseModel):
    assert GEMMA_WINDOW < PICTURE_TOKENS
    assert set(gemma3.spec.sliding_windows) == {GEMMA_WINDOW, None}
    assert gemma3.spec.layer_rotaries == (0, 0, 1, 0)
    assert gemma3.spec.attention_scale == 24**-0.5


@pytest.mark.parametrize("family", GEMMAS)
def test_the_reference_asks_as_generate_does(base_of: Any, family: str):
    """``generate`` tells Hugging Face's model which tokens see one another; our forwards say the same."""
    base = base_of(family, "own")
    inputs = inputs_of(base, "two")
    tokens, logits = _path(base.model, inputs, FORCED_STEPS)
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    output = base.model.generate(
        **tensors,
        do_sample=False,
        max_new_tokens=FORCED_STEPS + 1,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    length = inputs["input_ids"].shape[1]
    assert output.sequences[0, length:-1].tolist() == list(tokens)
    assert relative_error(torch.cat(output.logits).numpy(), logits) <= LIMIT


@pytest.mark.parametrize("family", GEMMAS)
@torch.no_grad()
def test_what_hugging_faces_model_does_without_being_told(base_of: Any, family: str):
    """It is causal; but PaliGemma's is only where a mask is made at all, which padding brings about."""
    base = base_of(family, "own")
    tensors = {name: torch.tensor(value) for name, value in inputs_of(base, "two").items()}
    told = base.model(**tensors).logits[0, -1].numpy()
    types = tensors.pop("token_type_ids")
    untold = base.model(**tensors).logits[0, -1].numpy()
    assert (relative_error(told, untold) > 100 * LIMIT) == (family == "gemma3")
    for name in ("input_ids", "attention_mask"):
        tensors[name] = torch.nn.functional.pad(tensors[name], (1, 0))
    padded = tensors | {"position_ids": (tensors["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
    assert relative_error(told, base.model(**padded).logits[0, -1].numpy()) > 100 * LIMIT
    padded["token_type_ids"] = torch.nn.functional.pad(types, (1, 0))
    assert relative_error(told, base.model(**padded).logits[0, -1].numpy()) <= LIMIT


def test_pan_and_scan_gives_pictures_of_their_own(gemma3: BaseModel):
    chat = [user_message([picture(size=(120, 40))], "where ?")]
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4}
    inputs = gemma3.processor.apply_chat_template(
        chat,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="np",
        processor_kwargs=crops,
    )
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    assert arrays["pixel_values"].shape == (4, 3, SIZE["height"], SIZE["width"])
    logits = hugging_face(gemma3, arrays)[1]
    assert relative_error(logits, portable(gemma3).prefill(arrays).logits) <= LIMIT


def respecified(base: BaseModel, **changes: Any) -> Generator:
    """The portable decoder with a changed shape over the same checkpoint."""
    broken = replace(base)
    spec: DecoderSpec = replace(base.spec, **changes)
    broken.__dict__["spec"] = spec
    broken.__dict__["model"] = base.model
    broken.__dict__["processor"] = base.processor
    return portable(broken)


GEMMA3_SABOTAGES: dict[str, dict[str, Any]] = {
    "window dropped": {"sliding_windows": (None,) * 4},
    "window everywhere": {"sliding_windows": (GEMMA_WINDOW,) * 4},
    "window one longer": {"sliding_windows": (GEMMA_WINDOW + 1, GEMMA_WINDOW + 1, None, GEMMA_WINDOW + 1)},
    "global rotary embedding everywhere": {"layer_rotaries": (1,) * 4},
    "local rotary embedding everywhere": {"layer_rotaries": (0,) * 4},
    "sandwich norms dropped": {"sandwich_norms": False},
    "query and key norms dropped": {"qk_norm": False},
    "norms without their offset": {"norm_offset": 0.0},
    "embeddings unscaled": {"embedding_scale": 1.0},
    "scores by √head_dim": {"attention_scale": None},
    "another activation": {"activation": "silu"},
}
PALIGEMMA_SABOTAGES: dict[str, dict[str, Any]] = {
    name: GEMMA3_SABOTAGES[name]
    for name in ("norms without their offset", "embeddings unscaled", "another activation")
}
SABOTAGES = [("gemma3", name) for name in GEMMA3_SABOTAGES] + [("paligemma", n) for n in PALIGEMMA_SABOTAGES]


@pytest.mark.parametrize(("family", "name"), SABOTAGES)
def test_a_decoder_of_another_shape_is_far_off(base_of: Any, family: str, name: str):
    base = base_of(family, "own")
    inputs = inputs_of(base, "wide")
    broken = respecified(base, **GEMMA3_SABOTAGES[name]).prefill(inputs).logits
    assert relative_error(hugging_face(base, inputs)[1], broken) > 100 * LIMIT


GROUPS: dict[str, Callable[[Array], Array]] = {
    "causal": lambda groups: np.full_like(groups, -1),
    "one group of both pictures": lambda groups: np.minimum(groups, 0),
    "shifted by a token": lambda groups: np.roll(groups, 1, axis=1),
    "the first picture causal": lambda groups: np.where(groups == 0, -1, groups),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [("gemma3", name) for name in GROUPS] + [("paligemma", "causal"), ("paligemma", "words causal")],
)
def test_tokens_that_see_the_wrong_ones(
    base_of: Any, monkeypatch: pytest.MonkeyPatch, family: str, name: str
):
    base = base_of(family, "own")
    inputs = inputs_of(base, "two")
    kind = type(base.family)
    groups = kind.attention_groups
    image = inputs["input_ids"] == base.config.image_token_id
    change = GROUPS.get(name, lambda groups: np.where(image, groups, -1))
    monkeypatch.setattr(kind, "attention_groups", lambda self, i, r: change(groups(self, i, r)))
    assert relative_error(hugging_face(base, inputs)[1], portable(base).prefill(inputs).logits) > 100 * LIMIT


def test_rows_pooled_before_columns(gemma3: BaseModel, monkeypatch: pytest.MonkeyPatch):
    forward = PooledProjector.forward

    def turned(self: PooledProjector, patches: Any) -> Any:
        side = self.side * self.kernel
        return forward(self, patches.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))

    inputs = inputs_of(gemma3, "square")
    assert relative_error(hugging_face(gemma3, inputs)[1], portable(gemma3).prefill(inputs).logits) <= LIMIT
    monkeypatch.setattr(PooledProjector, "forward", turned)
    found = portable(gemma3).prefill(inputs).logits
    assert relative_error(hugging_face(gemma3, inputs)[1], found) > 100 * LIMIT


def test_an_image_feature_scaled_as_a_word_is(pali: BaseModel):
    """Words are multiplied by √D as they are looked up, pictures are not."""
    inputs = inputs_of(pali, "square")
    asked = portable(pali)
    vision = asked.engine.vision
    asked.engine.vision = lambda pixels: {  # type: ignore[method-assign]
        name: value * pali.spec.embedding_scale for name, value in vision(pixels).items()
    }
    assert relative_error(hugging_face(pali, inputs)[1], asked.prefill(inputs).logits) > 100 * LIMIT


# The scalars.


@pytest.mark.parametrize("family", GEMMAS)
def test_the_gate_is_exact_and_swapped_heads_are_not(base_of: Any, family: str):
    base = base_of(family, "own")
    inputs = inputs_of(base, "two")
    expected = hooked(base, inputs)
    assert relative_error(expected, gated(base).prefill(inputs).logits) <= LIMIT
    attn, mlp = random_coefficients(base).dense(base.spec.num_layers, base.spec.num_heads)
    swapped = Scalars(attn=np.ascontiguousarray(attn[:, [1, 0, 2, 3]]), mlp=mlp)
    assert relative_error(expected, gated(base, scalars=swapped).prefill(inputs).logits) > 100 * LIMIT


@pytest.mark.parametrize("family", GEMMAS)
def test_folding_the_final_layer_is_exact(base_of: Any, family: str):
    """Nothing later reads the other positions of the final layer, in a prompt that sees itself either."""
    base = base_of(family, "own")
    inputs = inputs_of(base, "two")
    for layers, exact in (((3,), True), ((2,), False)):
        coefficients = random_coefficients(base, layers=layers)
        folded = fold(base.weights, coefficients, "weights").weights
        error = relative_error(
            hooked(base, inputs, layers=layers), gated(base, folded).prefill(inputs).logits
        )
        assert error <= LIMIT if exact else error > 100 * LIMIT


@pytest.mark.parametrize("family", GEMMAS)
def test_folding_scalars_of_every_token_is_exact(base_of: Any, family: str):
    base = base_of(family, "own")
    inputs = inputs_of(base, "wide")
    coefficients = random_coefficients(base, "all")
    folded = fold(base.weights, coefficients, "weights").weights
    expected = hooked(base, inputs, scope="all")
    assert relative_error(expected, gated(base, folded).prefill(inputs).logits) <= LIMIT


def test_the_mlp_scalar_goes_behind_its_norm(gemma3: BaseModel):
    coefficients = random_coefficients(gemma3, "all")
    assert coefficients.mlp_site == gemma3.spec.mlp_site == "post_norm"
    name = "model.language_model.layers.1.post_feedforward_layernorm.weight"
    assert name in coefficients.base.tensor_sha256
    stored = gemma3.checkpoint.tensor(name).float()
    s = float(coefficients.mlp_scale[1])
    folded = fold(gemma3.weights, coefficients, "weights").weights
    # What is stored in a checkpoint is w of 1 + w: s(1 + w) − 1 after folding.
    torch.testing.assert_close(folded.norm("layers.1.mlp_output_norm") - 1, s * (1 + stored) - 1)


def test_an_mlp_scalar_before_its_norm_is_nearly_cancelled(gemma3: BaseModel):
    """Sabotage: in ``down_proj`` it changes next to nothing, which is far from what it should."""
    inputs = inputs_of(gemma3, "wide")
    coefficients = random_coefficients(gemma3, "all")
    right = fold_factors(gemma3.spec, coefficients)
    misplaced: dict[str, Factor] = {}
    for name, factor in right.items():
        layer, part = name.rsplit(".", 1)
        columns = np.full(gemma3.spec.intermediate_size, factor.bias, np.float32)
        misplaced[f"{layer}.down_proj" if part == "mlp_output_norm" else name] = (
            replace(factor, columns=columns) if part == "mlp_output_norm" else factor
        )
    without = {name: factor for name, factor in right.items() if name.endswith("o_proj")}
    logits = {
        name: gated(gemma3, FoldedWeights(base=gemma3.weights, factors=factors)).prefill(inputs).logits
        for name, factors in (("right", right), ("misplaced", misplaced), ("without", without))
    }
    assert relative_error(logits["without"], logits["misplaced"]) < 1e-3
    expected = hooked(gemma3, inputs, scope="all")
    assert relative_error(expected, logits["right"]) <= LIMIT
    assert relative_error(expected, logits["misplaced"]) > 1000 * LIMIT


def test_coefficients_of_another_site_are_refused(gemma3: BaseModel):
    coefficients = replace(random_coefficients(gemma3), mlp_site="output")
    with pytest.raises(UserError, match="gemma3 has its site at 'post_norm'"):
        make_plan(coefficients, gemma3, load_target("cpu"), ExportOptions())
    with pytest.raises(UserError, match="has its site at 'post_norm'"), attach(gemma3.model, coefficients):
        pass


# Planning.


def test_two_phases_of_a_prompt_that_sees_itself_are_refused(pali: BaseModel, gemma3: BaseModel):
    target = load_target("cpu")
    for layers in (None, (3,)):
        coefficients = random_coefficients(pali, layers=layers)
        with pytest.raises(UserError, match=r"two-phase is refused: every token of a paligemma prompt sees"):
            make_plan(coefficients, pali, target, ExportOptions(fold="two-phase"))
    plan = make_plan(random_coefficients(gemma3), gemma3, target, ExportOptions(fold="two-phase"))
    inputs = inputs_of(gemma3, "two")
    found = reference(plan, fold(gemma3.weights, plan.coefficients, "two-phase")).prefill(inputs).logits
    assert relative_error(hooked(gemma3, inputs), found) <= LIMIT


def test_core_ais_engine_knows_no_groups(pali: BaseModel):
    plan = make_plan(random_coefficients(pali), pali, load_target("cpu"), ExportOptions())
    with pytest.raises(UserError, match=r"tokens of this family see their whole group"):
        refuse_unserved(plan)


def test_two_phases_over_paligemma_would_be_wrong(pali: BaseModel):
    """Sabotage: the refusal has a reason."""
    plan = make_plan(random_coefficients(pali), pali, load_target("cpu"), ExportOptions())
    folded = fold(pali.weights, plan.coefficients, "two-phase")
    asked = replace(reference(plan, folded), fold="two-phase")
    inputs = inputs_of(pali, "square")
    assert relative_error(hooked(pali, inputs), asked.prefill(inputs).logits) > 100 * LIMIT


@pytest.mark.parametrize(
    ("family", "asked", "held"), [("gemma3", 8, 128), ("gemma3", 9, 9), ("paligemma", 8, 128)]
)
def test_core_mls_prefill_holds_the_largest_group(base_of: Any, family: str, asked: int, held: int):
    base = base_of(family, "own")
    target = load_target("coreml").model_copy(update={"prefill_tokens": asked})
    plan = make_plan(random_coefficients(base), base, target, ExportOptions())
    assert plan.prefill_tokens == held
    assert any(f"takes {held} tokens at once" in why for why in plan.decisions) == (held != asked)
    assert (
        make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions()).prefill_tokens is None
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping of text model 'gemma3_text' is set"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping of text model 'gemma3_text' is set"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is set"),
        ({"hidden_activation": "relu"}, "activation 'relu' is not supported"),
        ({"layer_types": ["chunked_attention"] * 4}, "layers of type chunked_attention are not supported"),
    ],
)
def test_text_models_that_are_not_proved(gemma3: BaseModel, changes: dict[str, Any], words: str):
    config = type(gemma3.config.text_config).from_dict(gemma3.config.text_config.to_dict())
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    with pytest.raises(UserError, match=words):
        text_spec(config)


def test_configs_as_published_say_what_they_mean():
    """Gemma 3's name a stretch of the global layers only, and leave out what is their class's default."""
    config = Gemma3Config.from_dict(
        {
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "num_hidden_layers": 12,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14},
        }
    )
    spec = load_family("gemma3").decoder_spec(config)
    assert spec.sliding_windows == (*(1024,) * 5, None) * 2
    assert spec.layer_rotaries == (0, 0, 0, 0, 0, 1) * 2
    local, far = (np.array(rotary.inv_freq) for rotary in spec.rotaries)
    places = np.arange(0, 256, 2) / 256
    np.testing.assert_allclose(local, 10_000.0**-places, rtol=1e-5)
    np.testing.assert_allclose(far, 1_000_000.0**-places / 8, rtol=1e-5)
    assert (spec.attention_scale, spec.embedding_scale) == (None, 2560**0.5)
    assert load_family("paligemma").decoder_spec(PaliGemmaConfig()).attention_scale is None


def test_towers_and_poolings_that_are_not_proved(gemma3: BaseModel):
    projector = replace_kernel(gemma3.model.model.multi_modal_projector, tokens_per_side=4)
    with pytest.raises(UserError, match=r"6 patches per side does not divide into 4 rows"):
        PooledProjector(projector)

    class Config:
        model_type = "gemma3"
        vision_config = type("Vision", (), {"model_type": "clip_vision_model"})

    with pytest.raises(UserError, match=r"vision tower 'clip_vision_model' under gemma3 is not supported"):
        gemma3.family.decoder_spec(Config())


def replace_kernel(projector: Any, **changes: Any) -> Any:
    """A stand-in with other attributes."""
    return type("Projector", (), {**vars(projector), **changes})()


# Core ML's chunks.


def chunked_engine(group: list[int], prefill_tokens: int) -> Callable[[int], int]:
    """Where a chunk that starts at a token ends, by the engine's own rule."""
    engine = object.__new__(CoreMLEngine)
    engine.config = type("Config", (), {"prefill_tokens": prefill_tokens})()  # type: ignore[assignment]
    step = type("Step", (), {"lengths": np.array([len(group)]), "attention_group": np.array([group])})()
    return functools.partial(engine.chunk_end, step, width=prefill_tokens)


def test_chunks_cut_no_group():
    end = chunked_engine([-1, -1, 0, 0, 0, -1, 1, 1, 1, -1], 4)
    assert [end(0), end(2), end(5), end(9)] == [2, 6, 9, 10]
    with pytest.raises(UserError, match="5 tokens of this prompt see one another, and the package takes 4"):
        chunked_engine([0, 0, 0, 0, 0, -1], 4)(0)


def test_long_prompts_in_chunks_equal_the_portable_decoder(gemma3: BaseModel, tmp_path: Path):
    """Pictures of nine tokens by a prefill of twelve: no chunk may end inside one."""
    target = load_target("coreml").model_copy(update={"prefill_tokens": 12})
    plan = make_plan(random_coefficients(gemma3), gemma3, target, ExportOptions(precision="float16"))
    folded = fold(gemma3.weights, plan.coefficients, "gate")
    names = coreml.emit(emission_of(plan, folded, precision="float32", vision_precision="float32"), tmp_path)
    engine = CoreMLEngine({role: tmp_path / name for role, name in names.items()}, strict=True)
    inputs = inputs_of(gemma3, "two")
    assert inputs["input_ids"].shape[1] > 2 * 12
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, gemma3, "gate").forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]
    engine.chunk_end = lambda step, start, width: min(int(step.lengths[0]), start + width)  # type: ignore[method-assign]
    cut = generator(engine, gemma3, "gate").forced_logits(inputs, TOKENS)
    assert relative_error(expected, cut) > 100 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
def test_activations_beyond_float16s_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: bool):
    """A residual stream that passes 65,504, as Gemma 3's does: held by a factor, infinite without it."""
    model = FAMILIES["gemma3"](directory=tmp_path / "model", dtype=torch.float16)
    for layer in model.model.language_model.layers:
        layer.post_attention_layernorm.weight.copy_((1 + layer.post_attention_layernorm.weight) * 40_000 - 1)
        layer.post_feedforward_layernorm.weight.copy_(
            (1 + layer.post_feedforward_layernorm.weight) * 40_000 - 1
        )
    model.save_pretrained(tmp_path / "model")
    base = open_base(str(tmp_path / "model"))
    if not scaled:
        monkeypatch.setattr(coreml_decoder, "RESIDUAL_SCALE", 1.0)
    plan = make_plan(
        random_coefficients(base), base, load_target("coreml"), ExportOptions(precision="float16")
    )
    folded = fold(base.weights, plan.coefficients, "gate")
    (tmp_path / "graphs").mkdir()
    names = coreml.emit(
        emission_of(plan, folded, precision="float16", vision_precision="float16"), tmp_path / "graphs"
    )
    engine = CoreMLEngine({role: tmp_path / "graphs" / name for role, name in names.items()})
    inputs = inputs_of(base, "square")
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, base, "gate").forced_logits(inputs, TOKENS)
    assert np.isfinite(found).all() == scaled
    if scaled:
        np.testing.assert_array_equal(expected.argmax(-1), found.argmax(-1))


# Training, and what has no place for a prompt without a picture.


@pytest.mark.parametrize("family", GEMMAS)
def test_training_sees_what_the_deployed_model_sees(base_of: Any, family: str):
    base = base_of(family, "own")
    questions = load_questions("gridworld", "calibration", limit=6)
    examples = encode_examples(base.model, base.processor, questions, silent, "read")
    source = scalars(base.model)
    cached = can_cache_prefix(base.model)
    assert cached == (family == "gemma3")
    with attach_trainable(base.model, source) as handle:
        full = loss_and_gradient(FullScorer(base.model, handle, PAD), source, examples)
        if cached:
            short = loss_and_gradient(
                PrefixScorer(base.model, handle, PrefixStore(base.model, 0)), source, examples
            )
            assert short[0] == pytest.approx(full[0], rel=EXACT)
            assert (short[1] - full[1]).abs().max() <= EXACT * full[1].abs().max()
    assert full[0] == pytest.approx(deployed_loss(base, source, examples), rel=EXACT)


@torch.no_grad()
def deployed_loss(base: BaseModel, source: Any, examples: Any) -> float:
    """Mean loss per answer token: the prompt alone, then token by token over the cache."""
    total, count = 0.0, 0
    with attach_trainable(base.model, source):
        for example in examples:
            output = base.model(**example.prompt, use_cache=True)
            for place, token in enumerate(example.target):
                total -= float(output.logits[0, -1].log_softmax(-1)[token])
                count += 1
                if place + 1 < len(example.target):
                    output = base.model(
                        input_ids=torch.tensor([[token]]),
                        attention_mask=torch.ones(1, len(example.prompt_ids) + place + 1, dtype=torch.int64),
                        past_key_values=output.past_key_values,
                        use_cache=True,
                    )
    return total / count


def test_prompts_without_a_picture_are_left_out_where_the_processor_takes_none(pali: BaseModel):
    assert [p.name for p in parity_prompts(2)][-1] == "no picture"
    assert all(p.images for p in parity_prompts(2, text_alone=pali.family.takes_text_alone))
    with pytest.raises(UserError, match="only answers questions about pictures: give one with --image"):
        encode_messages(pali.processor, [user_message([], "where ?")])


def test_a_checkpoint_without_a_chat_template_gets_the_plain_one(tmp_path: Path):
    FAMILIES["paligemma"](directory=tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    processor = paligemma.FAMILY.load_processor(tmp_path)
    inputs = encode_messages(processor, [user_message([picture()], "where ?")])
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<image>" * PICTURE_TOKENS + "<s>where ?\n"
    assert "labels" not in inputs


@pytest.mark.slow
@pytest.mark.parametrize("family", GEMMAS)
@pytest.mark.parametrize("target", ["cpu", "coreml"])
def test_a_package_opens_in_a_fresh_process(base_of: Any, tmp_path: Path, family: str, target: str):
    base = base_of(family, "own")
    file = saved(random_coefficients(base), tmp_path)
    precision = "float32" if target == "cpu" else "float16"
    out = tmp_path / "package"
    outcome = fold_on(base, file, target, out=out, precision=precision, evaluation="none")
    assert outcome.passed, outcome
    assert load_coefficients(out / "scale.safetensors").mlp_site == base.spec.mlp_site
    picture(size=(64, 48)).save(tmp_path / "picture.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from scale_export import open_package\n"
        f"package = open_package({str(out)!r})\n"
        f"logits = package.logits([Image.open({str(tmp_path / 'picture.png')!r})], 'where is the circle ?')\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = hooked(base, prompt(base))
    assert (
        relative_error(expected[0], np.load(tmp_path / "logits.npy").reshape(-1, base.spec.vocab_size)[-1])
        <= (limits.LOWERING_RELATIVE["float32" if target == "cpu" else "float16"])
    )
