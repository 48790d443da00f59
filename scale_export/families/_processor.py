"""Hugging Face's processors without the parts that only videos need."""

from __future__ import annotations

from typing import Any


def leave_out_videos(processor: Any) -> None:
    """Let a processor class be built without its video processor, which takes torchvision, where that is missing."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        processor.get_attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])
