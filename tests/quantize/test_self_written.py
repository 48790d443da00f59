"""Chats that a model writes itself: by its own distribution, the same each time, and as in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from scale_export import UserError, verify
from scale_export.coefficients.file import Coefficients
from scale_export.core.compare import relative_error
from scale_export.core.limits import FOLD_RELATIVE
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach
from scale_export.package.manifest import open_package_files
from scale_export.proof.cases import Case, Prompt, model_logits
from scale_export.quantize import CalibrationOptions, calibration, self_written
from scale_export.quantize.calibration import calibrate, collect
from scale_export.quantize.example import Example
from scale_export.quantize.self_written import ANSWER_TOKENS, LEAST_TOKENS, self_examples
from scale_export.quantize.sources import SelfSource
from tests.helpers.coefficients import random_coefficients
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture
from tests.helpers.trees import tree
from tests.helpers.variants import variant_of

BaseOf = Callable[[str, str], BaseModel]
QUIET = WorkLog(quiet=True)
TRAINED = Path(__file__).parents[2] / "examples/tiny_vlm"
"""Its best tokens are sure, where a random model's hang on rounding."""


def written(
    base: BaseModel, coefficients: Coefficients, cache: Path, source: SelfSource, *, pictures: bool = True
) -> list[Example]:
    return self_examples(base, coefficients, source, limit=128, pictures=pictures, log=QUIET, cache=cache)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_writes_within_its_bounds_and_is_calibrated_on_it(
    family: str, base_of: BaseOf, tmp_path: Path
):
    base = base_of(family, variant_of(family))
    coefficients = random_coefficients(base)
    examples = written(base, coefficients, tmp_path, SelfSource(4))
    image, ends = base.image_token_id, set(base.rules.end_tokens)
    shown = [bool((example.inputs["input_ids"] == image).sum()) for example in examples]
    assert shown == [True, True, True, not base.family.takes_text_alone]
    for example in examples:
        assert LEAST_TOKENS < len(example.target) <= ANSWER_TOKENS and image not in example.target
        assert not ends & set(example.target[:-1])
        assert {len(x[0]) for x in example.inputs.values() if x.shape == example.inputs["input_ids"].shape}
    found = calibrate(base, coefficients, CalibrationOptions(source="self:4"), QUIET, tmp_path)
    assert all(np.isfinite(found.moments(name).matrix).all() for name in base.spec.linears())  # type: ignore[union-attr]


def test_a_chat_depends_on_its_seed_its_number_and_the_model_alone(base_of: BaseOf, tmp_path: Path):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    whole = written(base, coefficients, tmp_path / "a", SelfSource(6))
    fewer = written(base, coefficients, tmp_path / "b", SelfSource(3))
    told = [example.inputs["input_ids"].tolist() for example in whole]
    assert [example.inputs["input_ids"].tolist() for example in fewer] == told[:3]
    assert [example.target for example in fewer] == [example.target for example in whole[:3]]
    assert len({example.target for example in whole}) == 6
    other = written(base, coefficients, tmp_path / "a", SelfSource(6, seed=1))
    louder = replace(coefficients, mlp_scale=coefficients.mlp_scale * np.float32(3))
    scaled = written(base, louder, tmp_path / "a", SelfSource(6))
    for changed in (other, scaled):
        assert [example.target for example in changed] != [example.target for example in whole]


def test_what_was_written_is_kept_and_what_is_in_doubt_is_written_again(
    base_of: BaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of("llava", "llama")
    coefficients, source = random_coefficients(base), SelfSource(4)
    first = [example.target for example in written(base, coefficients, tmp_path, source)]
    (entry,) = (tmp_path / "written").iterdir()
    kept = entry.read_bytes()
    for damage in (kept[:-9], b"[]", kept.replace(b"[[[", b"[[[1, ", 1), json.dumps({"chats": []}).encode()):
        entry.write_bytes(damage)
        assert [example.target for example in written(base, coefficients, tmp_path, source)] == first
        assert entry.read_bytes() == kept

    def stop(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(self_written._Writer, "write", stop)
    assert [example.target for example in written(base, coefficients, tmp_path, source)] == first


def off_the_hooked_model(
    base: BaseModel, scope: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, *, gated: bool = True
) -> float:
    """How far what answers were drawn from is off Hugging Face's model with hooks on the finished chats."""
    coefficients = random_coefficients(base, scope)
    seen: dict[int, list[Any]] = {}
    chats: list[Any] = []
    true, write = self_written.Chat.next_token, self_written._Writer.write

    def told(chat: Any, logits: Any, *more: Any) -> Any:
        if chat.forced == len(chat.after) and not chat.done:
            seen.setdefault(id(chat), []).append(logits.copy())
        token, acts = true(chat, logits, *more)
        return token, acts and gated

    def listed(*asked: Any) -> Any:
        chats.extend(write(*asked))
        return chats

    monkeypatch.setattr(self_written.Chat, "next_token", told)
    monkeypatch.setattr(self_written._Writer, "write", listed)
    examples = written(base, coefficients, cache, SelfSource(4))
    prompt, errors = Prompt(name="", images=(), text=""), []
    for chat, example in zip(chats, examples, strict=True):
        drawn = np.stack(seen[id(chat)])
        case = Case(prompt=prompt, inputs=example.inputs, tokens=example.target[:-1], logits=drawn)
        with attach(base.model, coefficients):
            (expected,) = model_logits(base.model, [case])
        errors.append(relative_error(expected, drawn))
    return max(errors)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "qwen3_vl"])
@pytest.mark.parametrize("scope", ["last", "all"])
def test_the_distribution_is_the_hooked_models(
    family: str, scope: Any, base_of: BaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of(family, variant_of(family))
    assert off_the_hooked_model(base, scope, tmp_path, monkeypatch) <= FOLD_RELATIVE


def test_a_writer_without_the_scalars_is_another_model(
    base_of: BaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Sabotage."""
    base = base_of("llava", "llama")
    assert off_the_hooked_model(base, "last", tmp_path, monkeypatch, gated=False) > 1000 * FOLD_RELATIVE


def test_an_answer_at_once_without_its_scalars_is_noticed(
    base_of: BaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Sabotage: only the last position of the one forward carries them, as that of a prompt does."""
    monkeypatch.setattr(calibration, "replace", lambda gate, **_: gate)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_one_forward_over_an_answer_is_token_by_token("llava", "last", base_of, tmp_path)


@pytest.mark.parametrize("scope", ["last", "all"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_one_forward_over_an_answer_is_token_by_token(
    family: str, scope: Any, base_of: BaseOf, tmp_path: Path
):
    base = base_of(family, variant_of(family))
    coefficients = random_coefficients(base, scope)
    together = written(base, coefficients, tmp_path, SelfSource(4))
    assert all(example.at_once for example in together)
    apart = [replace(example, at_once=False) for example in together]
    names = {f"layers.{n}.safetensors" for n in range(base.spec.num_layers)} | {"output.safetensors"}
    found = []
    for examples, place in ((together, tmp_path / "together"), (apart, tmp_path / "apart")):
        place.mkdir()
        with torch.no_grad():
            collect(base, coefficients, "uniform", examples, place, names, QUIET)
        found.append({name: load_file(place / name) for name in sorted(names)})
    for name, moments in found[0].items():
        for key, value in moments.items():
            other = found[1][name][key]
            np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-5 * np.abs(other).max(), err_msg=key)


def test_a_users_pictures_are_looked_at(base_of: BaseOf, tmp_path: Path):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (1, 2):
        picture(number).save(photos / f"{number}.png")
    examples = written(base, coefficients, tmp_path, SelfSource(3, images=photos))
    generated = written(base, coefficients, tmp_path, SelfSource(3))
    pixels = [example.inputs["pixel_values"] for example in examples]
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert (pixels[0] != pixels[1]).any() and (pixels[0] != generated[0].inputs["pixel_values"]).any()
    (photos / "1.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"1\.png cannot be read as a picture"):
        written(base, coefficients, tmp_path, SelfSource(3, images=photos))
    words = written(base, coefficients, tmp_path, SelfSource(3), pictures=False)
    assert not any("pixel_values" in example.inputs for example in words)


def test_a_model_that_needs_pictures_is_told_so(base_of: BaseOf, tmp_path: Path):
    base = base_of("paligemma", "own")
    with pytest.raises(UserError, match="takes no words without a picture"):
        written(base, random_coefficients(base), tmp_path, SelfSource(3), pictures=False)


@pytest.mark.slow
def test_a_package_calibrated_on_itself_reproduces_and_verifies(tmp_path: Path):
    base = opened_once(TRAINED / "model")
    coeffs = TRAINED / "spatial_all.pt"
    for run in ("first", "second"):
        place = tmp_path / run
        asked = {"precision": "int8", "quantizer": "gptq", "calib": "self:4,seed=5", "evaluation": "none"}
        outcome = fold_on(base, coeffs, "cpu", out=place / "package", cache=place / "cache", **asked)
        assert outcome.passed and outcome.parity["legs"]["quantization"]["codes_identical"] is True
    assert tree(tmp_path / "first/package") == tree(tmp_path / "second/package")
    facts = open_package_files(tmp_path / "first/package").manifest.calibration
    assert facts is not None and facts.questions == "self:4,seed=5"
    again: dict[str, Any] = {"model": str(base.directory), "evaluation": "none", "cache": tmp_path / "other"}
    found = verify(tmp_path / "first/package", **again)
    assert found.parity is not None and found.parity["legs"]["quantization"]["codes_identical"] is True
