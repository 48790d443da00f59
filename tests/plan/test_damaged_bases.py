"""A base model damaged in one of many ways: a sentence or a sound export, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError
from scale_export.model.checkpoint import Checkpoint
from tests.helpers.cli import run
from tests.helpers.coefficients import random_coefficients

Damage = Callable[[Path], None]
GONE: Any = object()


def setting(file: str, path: str, value: Any) -> Damage:
    """``value`` at a dotted path of a JSON file; ``GONE`` takes it out."""

    def damage(base: Path) -> None:
        table = json.loads((base / file).read_text())
        inner, keys = table, path.split(".")
        for key in keys[:-1]:
            inner = inner[key]
        if value is GONE:
            inner.pop(keys[-1])
        else:
            inner[keys[-1]] = value
        (base / file).write_text(json.dumps(table))

    return damage


def config(path: str, value: Any) -> Damage:
    return setting("config.json", path, value)


def pictures(key: str, value: Any) -> Damage:
    return setting("processor_config.json", f"image_processor.{key}", value)


def without(*names: str) -> Damage:
    def damage(base: Path) -> None:
        for name in names:
            (base / name).unlink()

    return damage


def replaced(name: str, content: str | bytes) -> Damage:
    def damage(base: Path) -> None:
        (base / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def another_word(base: Path) -> None:
    """A word of the tokenizer beyond the table's rows."""
    table = json.loads((base / "tokenizer.json").read_text())
    word = {"id": 9999, "content": "<extra>", "single_word": False, "lstrip": False, "rstrip": False}
    table["added_tokens"].append({**word, "normalized": False, "special": True})
    (base / "tokenizer.json").write_text(json.dumps(table))


def half_of(name: str) -> Damage:
    def damage(base: Path) -> None:
        whole = (base / name).read_bytes()
        (base / name).write_bytes(whole[: len(whole) // 2])

    return damage


COUNTS = ("many", None, [1, 2], -3, 0, 10**12, 2.5, True, {"a": 1})
"""What no count is."""

REFUSED: dict[str, tuple[Damage, str]] = {
    "no config": (without("config.json"), "holds no config.json"),
    "no weights": (without("model.safetensors"), "model.safetensors"),
    "no processor": (
        without("processor_config.json"),
        "no processor_config.json and no preprocessor_config.json",
    ),
    "no tokenizer": (without("tokenizer.json"), "holds no tokenizer.json"),
    "no template": (without("chat_template.jinja"), "chat template"),
    "half of the weights": (half_of("model.safetensors"), "not a whole safetensors file"),
    **{
        f"garbage in {name}": (replaced(name, b"\x80{"), words)
        for name, words in {
            "config.json": "not readable JSON",
            "processor_config.json": "are refused by transformers",
            "tokenizer.json": "are refused by transformers",
            "tokenizer_config.json": "are refused by transformers",
            "chat_template.jinja": "are refused by transformers",
        }.items()
    },
    "a list in config.json": (replaced("config.json", "[]"), "not an object"),
    "a list in processor_config.json": (replaced("processor_config.json", "[]"), "refused by transformers"),
    "nothing in config.json": (replaced("config.json", "{}"), "model type"),
    "nothing in tokenizer.json": (replaced("tokenizer.json", "{}"), "refused by transformers"),
    **{
        f"{key} {value!r}": (config(key, value), f"{key} is ")
        for key in ("text_config.hidden_size", "text_config.num_hidden_layers", "vision_config.patch_size")
        for value in COUNTS
        if not (key.endswith("patch_size") and value == [1, 2])
    },
    "head_dim -1": (config("text_config.head_dim", -1), "text_config.head_dim is -1"),
    "no multiple": (
        config("text_config.num_key_value_heads", 3),
        "a multiple of num_key_value_heads, which is 3",
    ),
    "another width": (config("text_config.hidden_size", 128), "is [128, 32], and the file holds [64, 32]"),
    "another tower": (config("vision_config.num_hidden_layers", 9), "holds no weight for model.vision_tower"),
    "text of another type": (config("text_config", "llama"), "text_config is 'llama', and must be an object"),
    "text model of no name": (config("text_config.model_type", 7), "text_config.model_type is 7"),
    "unknown text model": (config("text_config.model_type", "many"), "is refused by transformers"),
    "unknown activation": (config("text_config.hidden_act", "many"), "activation 'many'"),
    "unknown tower activation": (config("vision_config.hidden_act", "many"), "cannot build the model"),
    "eps of a word": (config("text_config.rms_norm_eps", "small"), "text_config.rms_norm_eps is 'small'"),
    "rope of a word": (config("text_config.rope_parameters", "many"), "rope"),
    "rope of an unknown type": (config("text_config.rope_parameters.rope_type", "many"), "rope"),
    "rope that turns nothing": (config("text_config.rope_parameters.rope_theta", 0), "correct rope_theta"),
    "older spelling of a dtype": (config("torch_dtype", "torch.bfloat16"), "write 'bfloat16' there"),
    "the same of dtype": (config("dtype", "torch.float16"), "write 'float16' there"),
    "no dtype": (config("dtype", "many"), "dtype is 'many'"),
    "image token beyond the table": (config("image_token_index", 5000), "the token id 5000, and the table"),
    "another image token": (config("image_token_index", 9), "leaves 0 places for a picture"),
    "a word beyond the table": (another_word, "ids beyond them to '<extra>'"),
    "other patches": (setting("processor_config.json", "patch_size", 8), "leaves 36 places for a picture"),
    "no layer": (config("vision_feature_layer", 0), "vision_feature_layer is 0"),
    "layer beyond the tower": (config("vision_feature_layer", -30), "does not fit"),
    "a tower of timm": (config("vision_config", {"model_type": "timm_wrapper"}), "the library timm"),
    "pictures of no size": (pictures("size", "many"), "refused by transformers"),
    "pictures of size 0": (pictures("crop_size", {"height": 0, "width": 0}), "(0*0)"),
    "pictures divided by 0": (pictures("image_std", [0, 0, 0]), "must be above 0"),
    "pictures of no levels": (pictures("rescale_factor", 0), "must be above 0"),
    "mean of a word": (pictures("image_mean", "many"), "cannot prepare a prompt"),
    "unknown image processor": (pictures("image_processor_type", "Many"), "refused by transformers"),
    "a picture's word by no word": (
        setting("tokenizer_config.json", "eos_token", 7),
        "refused by transformers",
    ),
}
"""Name → what is done to a base, and words of the refusal."""

SOUND: dict[str, Damage] = {
    "nothing": lambda base: None,
    "no tokenizer_config.json": without("tokenizer_config.json"),
    "no generation_config.json": without("generation_config.json"),
    "rope_parameters null": config("text_config.rope_parameters", None),
    "dtype null": config("dtype", None),
    "one number for every channel": pictures("image_std", 0.5),
    "no known dtype of an activation that is never asked": config("initializer_range", 0.5),
}
"""What looks like damage, or none, and transformers takes."""


@pytest.fixture
def damaged(base_of: Any, tmp_path: Path) -> Callable[[Damage], list[str]]:
    """The words of a fold on a damaged copy of a random LLaVA, whose coefficients belong to the copy."""

    def make(damage: Damage) -> list[str]:
        base = base_of("llava", "llama")
        copy = Path(shutil.copytree(base.directory, tmp_path / "base"))
        damage(copy)
        coefficients = random_coefficients(base)
        try:
            checkpoint = Checkpoint(copy)
            found = checkpoint.config_sha256()
            belongs = replace(coefficients.base, config_sha256=found, prompt_template_sha256=None)
            coefficients = replace(coefficients, base=belongs)
        except UserError:
            pass  # no config to belong to
        path = tmp_path / "spatial.safetensors"
        coefficients.save(path)
        words = [
            "fold",
            "--coeffs",
            str(path),
            "--model",
            str(copy),
            "--target",
            "cpu",
            "--precision",
            "float32",
        ]
        return [*words, "--eval", "none", "--out", str(tmp_path / "package")]

    return make


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_base_is_refused_in_a_sentence(
    damaged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    """With ``--dry-run`` and without, by the same words: every refusal is the plan's."""
    damage, expected = REFUSED[name]
    words = damaged(damage)
    capsys.readouterr()
    said = []
    for asked in ([*words, "--dry-run"], words):
        assert run(*asked) == 2
        captured = capsys.readouterr()
        said.append(" ".join(captured.err.split()))
        assert "Traceback" not in captured.err + captured.out
    assert said[0] == said[1] and expected in said[0]
    assert not (tmp_path / "package").exists() and not (tmp_path / "package.failed").exists()


@pytest.mark.parametrize("name", SOUND)
def test_what_transformers_takes_is_taken(damaged: Any, name: str):
    words = damaged(SOUND[name])
    assert run(*words, "--dry-run") == 0
    if name == "one number for every channel":
        assert run(*words) == 0
