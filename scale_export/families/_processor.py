"""Hugging Face's processors without the parts that only videos need."""

from __future__ import annotations

import importlib
from typing import Any


def model_class(path: str) -> Any:
    """A class of ``transformers.models`` by ``package.module.Class``, where the lazy top level doesn't offer it."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)


def leave_out_videos(processor: Any) -> None:
    """Let a processor class be built without its video processor, which takes torchvision, where that is missing."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        processor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])
