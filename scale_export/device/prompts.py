"""From pictures and words to a processor's NumPy inputs; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Processor
from scale_export.core.pictures import Picture, load_picture
from scale_export.core.records import Array


class Part(TypedDict, total=False):
    """A part of a turn: its ``type``, and the ``image`` or the ``text`` itself."""

    type: Literal["image", "text"]
    image: Image.Image
    text: str


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: str
    content: list[Part]


LABELS = "labels"
"""What some processors add for fine-tuning; no input of a model that answers."""


def user_message(images: Sequence[Picture], text: str) -> Message:
    """One user turn: the pictures first, upright in RGB, then the words.

    Raises:
        UserError: as ``load_picture``.
    """
    pictures: list[Part] = [{"type": "image", "image": load_picture(image)} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def assistant_message(text: str) -> Message:
    """One answer of the model, for a chat that goes on."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def encode_messages(processor: Processor, messages: Sequence[Message]) -> dict[str, Array]:
    """The processor's inputs for one conversation, generation prompt included.

    Returns ``input_ids`` and ``attention_mask`` ``[1, T]``, ``pixel_values`` and whatever else the family takes.

    Raises:
        UserError: the processor has no chat template.
    """
    if getattr(processor, "chat_template", None) is None:
        raise UserError(
            "the model's processor has no chat template to ask with; add a chat_template.jinja to it"
        )
    inputs = processor.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    return {name: np.asarray(value) for name, value in inputs.items() if name != LABELS}


def end_token_ids(processor: Processor, directory: Path) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's own and the generation config's."""
    ids = {processor.tokenizer.eos_token_id}
    path = directory / "generation_config.json"
    if path.exists():
        configured = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ids |= set(configured if isinstance(configured, list) else [configured])
    return frozenset(int(i) for i in ids if i is not None)
