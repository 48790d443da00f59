"""Coefficients made for a model, and tied to one base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export.coefficients.file import Coefficients, load_coefficients
from scale_export.coefficients.rules import Bound
from scale_export.core.errors import UserError
from scale_export.model.checkpoint import SINGLE_FILE, Checkpoint
from scale_export.model.identity import (
    base_directory,
    check_base,
    make_coefficients,
    prompt_template_sha256,
)
from tests.helpers.coefficient_files import SUFFIXES, record
from tests.helpers.models import CHAT_TEMPLATE, FAMILIES

Trained = tuple[Any, Path, Coefficients]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model, its directory, and coefficients for two of its three layers."""
    directory = tmp_path_factory.mktemp("base") / "model"
    model = FAMILIES["llava"](directory=directory, attention_bias=True, mlp_bias=True)
    scales = record()
    made = make_coefficients(
        model,
        directory,
        scope="last",
        head_scale=scales["head_scale"][:2],
        mlp_scale=torch.from_numpy(scales["mlp_scale"][:2]),
        layer_indices=[0, 2],
        bound=Bound(kind="tanh", r=1.0),
        training={"steps": 3},
    )
    return model, directory, made


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "model"))


def test_made_coefficients_name_the_base_model_exactly(
    trained: Trained,
) -> None:
    model, directory, made = trained
    checkpoint, scales = Checkpoint(directory), record()
    parts = ("self_attn.o_proj", "mlp.down_proj")
    names = [
        f"model.language_model.layers.{layer}.{part}.{kind}"
        for layer in (0, 2)
        for part in parts
        for kind in ("weight", "bias")
    ]
    assert made.base.tensor_sha256 == {name: checkpoint.sha256(name) for name in names}
    assert made.base.config_sha256 == checkpoint.config_sha256()
    assert made.base.prompt_template_sha256 == prompt_template_sha256(directory) is not None
    assert (made.base.model_type, made.base.base_revision) == ("llava", None)
    assert (made.num_heads, made.head_dim, made.mlp_site) == (4, 32, "output")
    assert made.layer_indices == (0, 2)
    assert np.array_equal(np.stack(made.head_scale), scales["head_scale"][:2])
    assert np.array_equal(made.mlp_scale, scales["mlp_scale"][:2])
    assert made.training == {"steps": 3}
    assert model.config.model_type == made.base.model_type


def test_all_layers_by_default_and_free_bound(trained: Trained) -> None:
    model, directory, _ = trained
    made = make_coefficients(
        model, directory, scope="all", head_scale=torch.ones(3, 4).bfloat16(), mlp_scale=[1, 1, 2]
    )
    assert made.layer_indices == (0, 1, 2)
    assert made.bound == Bound(kind="none", r=None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_loaded_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = FAMILIES["llava_next"]("qwen2", directory=tmp_path, dtype=dtype)
    model.float()
    made = make_coefficients(model, tmp_path, scope="last", head_scale=np.ones((3, 4)), mlp_scale=np.ones(3))
    check_base(made, Checkpoint(tmp_path))
    assert made.base.tensor_sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_scale": np.ones((2, 4))}, r"head_scale has shape \[2, 4\]"),
        ({"head_scale": np.ones((3, 5))}, "hold 5 head scalars for layer 0.*has 4"),
        ({"head_scale": np.full((3, 4), np.nan)}, "head_scale holds NaN"),
        ({"mlp_scale": np.ones(2)}, r"mlp_scale has shape \[2\]"),
        ({"scope": "first"}, "scope is 'first'"),
        ({"layer_indices": [0, 1, 3]}, "must name layers from 0 to 2"),
        ({"layer_indices": [-1, 0, 1]}, "must name layers from 0 to 2"),
        ({"layer_indices": []}, "must name layers from 0 to 2"),
        ({"layer_indices": [0, 2, 1]}, "each once, in order"),
        ({"layer_indices": [0, 0, 1]}, "each once, in order"),
        ({"training": {"path": Path()}}, "training holds a value of type PosixPath"),
    ],
)
def test_scalars_that_do_not_fit_the_model(trained: Trained, changes: dict[str, Any], message: str) -> None:
    model, directory, _ = trained
    fitting = {"scope": "last", "head_scale": np.ones((3, 4)), "mlp_scale": np.ones(3)}
    with pytest.raises(UserError, match=message):
        make_coefficients(model, directory, **(fitting | changes))


def test_model_that_was_changed_after_loading_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = FAMILIES["llava"](directory=tmp_path / "other", seed=1, attention_bias=True, mlp_bias=True)
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.o_proj\.weight is not what .* stores"):
        make_coefficients(other, trained[1], scope="last", head_scale=np.ones((3, 4)), mlp_scale=np.ones(3))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_names_its_base_relative_to_itself(trained: Trained, suffix: str, tmp_path: Path) -> None:
    _, directory, made = trained
    for place in (directory.parent, tmp_path):
        made.save(place / f"spatial{suffix}")
        loaded = load_coefficients(place / f"spatial{suffix}")
        assert not Path(loaded.base.base_model).is_absolute()
        assert base_directory(loaded, place / f"spatial{suffix}") == str(directory.resolve())
    assert load_coefficients(directory.parent / f"spatial{suffix}").base.base_model == "model"


def test_base_directory_of_hub_ids_and_lost_paths(trained: Trained, tmp_path: Path) -> None:
    good = trained[2]

    def directory(base_model: str) -> str:
        return base_directory(
            replace(good, base=replace(good.base, base_model=base_model)), tmp_path / "c.pt"
        )

    assert directory("org/model") == "org/model"
    assert directory("../lost") == str(tmp_path.parent.resolve() / "lost")
    assert directory("/lost") == "/lost"


def test_hub_snapshots_are_recorded_by_id_and_revision(trained: Trained, tmp_path: Path) -> None:
    model, directory, _ = trained
    snapshot = tmp_path / "models--org--tiny-vlm" / "snapshots" / "abc123"
    shutil.copytree(directory, snapshot)
    made = make_coefficients(model, snapshot, scope="all", head_scale=np.ones((3, 4)), mlp_scale=np.ones(3))
    assert (made.base.base_model, made.base.base_revision) == ("org/tiny-vlm", "abc123")
    assert base_directory(made, tmp_path / "c.pt") == "org/tiny-vlm"


def test_right_base_passes_in_one_file_or_shards(trained: Trained, copied: Path) -> None:
    model, directory, made = trained
    check_base(made, Checkpoint(directory))
    (copied / SINGLE_FILE).unlink()
    model.save_pretrained(copied, max_shard_size="50KB")
    assert not (copied / SINGLE_FILE).exists()
    check_base(made, Checkpoint(copied))


def edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    text = config["text_config"] | {k: v for k, v in changes.items() if k in config["text_config"]}
    (directory / "config.json").write_text(json.dumps(config | changes | {"text_config": text}))


def flip_byte(directory: Path, name: str) -> None:
    content = bytearray((directory / SINGLE_FILE).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8:header])[name]["data_offsets"]
    content[header + start] ^= 1
    (directory / SINGLE_FILE).write_bytes(content)


STORED = "language_model.model.layers."
SABOTAGES: list[tuple[Callable[[Path], None], str]] = [
    (
        lambda d: flip_byte(d, f"{STORED}0.self_attn.o_proj.weight"),
        r"layers\.0\.self_attn\.o_proj\.weight .*differs",
    ),
    (
        lambda d: flip_byte(d, f"{STORED}2.mlp.down_proj.weight"),
        r"layers\.2\.mlp\.down_proj\.weight .*differs",
    ),
    (lambda d: flip_byte(d, f"{STORED}2.mlp.down_proj.bias"), r"layers\.2\.mlp\.down_proj\.bias .*differs"),
    (lambda d: edit_config(d, model_type="llava_next"), "belong to a 'llava' model, but .* is 'llava_next'"),
    (lambda d: edit_config(d, rms_norm_eps=0.1), r"config\.json .*differs"),
    (lambda d: edit_config(d, vision_feature_layer=-1), r"config\.json .*differs"),
    (lambda d: edit_config(d, num_attention_heads=8), "are for 4 heads, but the model has 8"),
    (lambda d: edit_config(d, num_hidden_layers=2), "scale layer 2, but the model's last is 1"),
    (lambda d: edit_config(d, vision_config=3), r"can't read config\.json"),
    (lambda d: (d / "chat_template.jinja").unlink(), "chat template .*differs"),
]


@pytest.mark.parametrize(("sabotage", "message"), SABOTAGES)
def test_another_base_is_refused(
    trained: Trained, copied: Path, sabotage: Callable[[Path], None], message: str
) -> None:
    check_base(trained[2], Checkpoint(copied))
    sabotage(copied)
    with pytest.raises(UserError, match=message):
        check_base(trained[2], Checkpoint(copied))


def test_weights_that_no_scalar_touches_may_differ(trained: Trained, copied: Path) -> None:
    flip_byte(copied, f"{STORED}1.mlp.down_proj.weight")
    check_base(trained[2], Checkpoint(copied))


def test_prompt_template_hash_survives_a_checkout_with_other_line_ends(tmp_path: Path) -> None:
    for name, ends in (("unix", b"a\nb\n"), ("windows", b"a\r\nb\r\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat_template.jinja").write_bytes(ends)
    assert prompt_template_sha256(tmp_path / "unix") == prompt_template_sha256(tmp_path / "windows")


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_prompt_template_hash_does_not_depend_on_where_it_is_stored(
    trained: Trained, copied: Path, name: str
) -> None:
    (copied / "chat_template.jinja").unlink()
    assert prompt_template_sha256(copied) is None
    (copied / name).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    assert prompt_template_sha256(copied) == trained[2].base.prompt_template_sha256
