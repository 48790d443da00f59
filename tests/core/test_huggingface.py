"""The protocols say what is used of Hugging Face's objects; here, that its objects have it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    Gemma3Config,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from scale_export.core import huggingface
from scale_export.model.base import BaseModel, open_base

TINY_VLM = Path(__file__).parents[2] / "examples" / "tiny_vlm" / "model"

CONFIGS = (
    Gemma3Config,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)
CALLED = {"__call__", "__getitem__", "__iter__"}
OF_OTHERS = {
    ("Processor", "patch_size"),
    ("Processor", "spatial_merge_size"),
    ("ImageProcessor", "patch_size"),
    ("ImageProcessor", "merge_size"),
}
"""What a protocol says that only some families have."""


def declared(protocol: type) -> set[str]:
    """Its own attributes, properties and methods, and those of the protocols that it extends."""
    names: set[str] = set()
    for part in (kind for kind in protocol.__mro__ if kind.__module__ in (huggingface.__name__, __name__)):
        names |= set(vars(part).get("__annotations__", {}))
        names |= {name for name, value in vars(part).items() if isinstance(value, property)}
        names |= {
            name
            for name, value in vars(part).items()
            if callable(value) and (not name.startswith("_") or name in CALLED)
        }
    return names


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return open_base(str(TINY_VLM))


def test_a_model_and_its_processor_have_what_is_declared(base: BaseModel) -> None:
    objects = {
        huggingface.Model: base.model,
        huggingface.GenerationConfig: base.model.generation_config,
        huggingface.Processor: base.processor,
        huggingface.Tokenizer: base.processor.tokenizer,
        huggingface.EncodedText: base.processor.tokenizer("a", add_special_tokens=False),
        huggingface.ImageProcessor: base.processor.image_processor,
        huggingface.PictureSize: base.processor.image_processor.size,
    }
    missing = {
        (protocol.__name__, name)
        for protocol, found in objects.items()
        for name in declared(protocol)
        if not hasattr(found, name)
    }
    assert missing <= OF_OTHERS


@pytest.mark.parametrize("part", ["", "text_config", "vision_config"])
def test_every_declared_part_of_a_config_is_one_of_some_family(part: str) -> None:
    protocol = {
        "": huggingface.Config,
        "text_config": huggingface.TextConfig,
        "vision_config": huggingface.VisionConfig,
    }[part]
    configs = [kind() for kind in CONFIGS]
    parts = [getattr(config, part) if part else config for config in configs]
    assert {n for n in declared(protocol) if not any(hasattr(found, n) for found in parts)} == set()


def test_a_name_that_nothing_has_is_seen(base: BaseModel) -> None:
    class Wrong(huggingface.Tokenizer):
        no_such_token: str

    assert {n for n in declared(Wrong) if not hasattr(base.processor.tokenizer, n)} == {"no_such_token"}
    assert {"config", "get_submodule", "generate"} <= declared(huggingface.Model)
