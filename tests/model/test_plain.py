"""Bases whose stored tensors are not the weights that transformers computes with: refused before one is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scale_export.backends.checkpoint.writer import copy_other_files
from scale_export.core.errors import UserError
from scale_export.model.base import open_base
from scale_export.model.checkpoint import Checkpoint
from scale_export.model.plain import DEQUANTIZING, check_plain
from tests.helpers.models import FAMILIES

WEIGHT = "model.language_model.layers.0.mlp.down_proj.weight"


def made(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A directory with these tensors and this config, and no more."""
    (directory / "config.json").write_text(json.dumps({"model_type": "llava", **config}))
    save_file(tensors, directory / "model.safetensors")
    return directory


def plain(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {WEIGHT: torch.ones(2, 2).to(dtype), "vision_tower.embeddings.position_ids": torch.arange(4)}


@pytest.mark.parametrize("method", [*DEQUANTIZING, "gptq", "awq"])
@pytest.mark.parametrize("where", ["", "text_config", "vision_config"])
def test_a_quantized_base_is_refused_by_its_method(tmp_path: Path, method: str, where: str) -> None:
    stated = {"quantization_config": {"quant_method": method}}
    made(tmp_path, plain(), **({where: stated} if where else stated))
    with pytest.raises(UserError) as refusal:
        open_base(str(tmp_path))
    for word in (f"quantized ({method}", where, "give the checkpoint", DEQUANTIZING.get(method, "")):
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("stated", "word"),
    [({"load_in_8bit": True}, "bitsandbytes"), ({"bits": 4}, "without a name"), ("fp8", "without a name")],
)
def test_a_method_that_is_not_named_is_refused_too(tmp_path: Path, stated: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check_plain(Checkpoint(made(tmp_path, plain(), quantization_config=stated)))
    with pytest.raises(UserError, match=word):
        check_plain(Checkpoint(made(tmp_path, plain(), compression_config=stated)))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.int64, "I64"),
    ],
)
def test_weights_that_are_no_floats_are_refused_without_any_config(
    tmp_path: Path, dtype: torch.dtype, stored: str
) -> None:
    made(tmp_path, plain(dtype))
    with pytest.raises(UserError, match=rf"down_proj\.weight is stored as {stored}.*give the checkpoint"):
        open_base(str(tmp_path))


def test_codes_under_another_name_are_refused(tmp_path: Path) -> None:
    codes = {"model.language_model.layers.0.mlp.down_proj.packed": torch.ones(2, 2, dtype=torch.uint8)}
    with pytest.raises(UserError, match="packed is stored as U8"):
        check_plain(Checkpoint(made(tmp_path, plain() | codes)))


def test_an_adapter_is_refused_beside_a_base_and_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match=r"PEFT adapter.*merge_and_unload\(\).*as the base"):
            open_base(str(tmp_path))
        made(tmp_path, plain())


def test_a_checkpoint_takes_no_adapter_along(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    for directory in (source, out):
        directory.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors.index.json", "tokenizer.json"):
        (source / name).write_text("{}")
    copy_other_files(source, out)
    assert [file.name for file in out.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_with_buffers_of_indices_are_plain(tmp_path: Path, dtype: torch.dtype) -> None:
    check_plain(Checkpoint(made(tmp_path, plain(dtype), quantization_config=None, text_config={})))


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_a_healthy_base_opens(tmp_path: Path, family: str) -> None:
    FAMILIES[family](directory=tmp_path, dtype=torch.bfloat16)
    assert open_base(str(tmp_path)).spec.num_layers
