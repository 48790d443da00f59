"""From pictures and words to a processor's NumPy inputs; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypedDict

import numpy as np
from PIL import Image

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Processor
from scale_export.core.pictures import Picture, load_picture
from scale_export.core.records import Array
from scale_export.core.watch import PROCESSOR, bounded
from scale_export.questions.question import Question


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

PLACEHOLDERS = (
    "image_token",
    "video_token",
    "audio_token",
    "boi_token",
    "eoi_token",
    "fake_image_token",
    "global_image_token",
    "global_image_tag",
    "image_break_token",
    "image_end_token",
    "start_image_token",
    "end_image_token",
    "vision_start_token",
    "vision_end_token",
)
"""Where processors and tokenizers name the words that stand for pictures in a prompt."""

NARROW = 10
"""Long edge by short edge of a picture that a processor may refuse for its shape; Qwen's refuse 200."""


def user_message(images: Sequence[Picture], text: str) -> Message:
    """One user turn: the pictures first, upright in RGB, then the words.

    Raises:
        UserError: as ``load_picture``, and words that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that isn't UTF-8 stand as surrogates
        raise UserError(
            f"the question is not UTF-8 from character {error.start + 1} on: write it in UTF-8"
        ) from error
    pictures: list[Part] = [{"type": "image", "image": load_picture(image)} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def assistant_message(text: str) -> Message:
    """One answer of the model, for a chat that goes on."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def conversation(question: Question, *, pictures: bool = True) -> list[Message]:
    """A question as chat messages: the turns before it, and its pictures in the first turn unless they are left out.

    Raises:
        UserError: as ``user_message``.
    """
    images = question.images if pictures else []
    asked = [*(turn.asked for turn in question.earlier), question.prompt]
    users = [user_message([] if number else images, text) for number, text in enumerate(asked)]
    answers = [assistant_message(turn.answered) for turn in question.earlier]
    turns = [message for pair in zip(users[:-1], answers, strict=True) for message in pair]
    return [*turns, users[-1]]


def encode_messages(processor: Processor, messages: Sequence[Message]) -> dict[str, Array]:
    """The processor's inputs for one conversation, generation prompt included.

    Returns ``input_ids`` and ``attention_mask`` ``[1, T]``, ``pixel_values`` and whatever else the family takes.

    Raises:
        UserError: the processor has no chat template, or as ``without_placeholders`` and ``narrow_pictures_refused``.
    """
    if getattr(processor, "chat_template", None) is None:
        raise UserError(
            "the model's processor has no chat template to ask with; add a chat_template.jinja to it"
        )
    said = without_placeholders(processor, messages)
    with (
        narrow_pictures_refused(said),
        bounded("what this model's processor makes of the conversation", PROCESSOR),
    ):
        inputs = processor.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )
    return {name: np.asarray(value) for name, value in inputs.items() if name != LABELS}


def placeholders(processor: Processor) -> list[str]:
    """The words that stand for pictures in this processor's prompts, in alphabetical order."""
    owners = (processor, processor.tokenizer)
    words = {getattr(owner, name, None) for owner in owners for name in PLACEHOLDERS}
    return sorted(word for word in words if isinstance(word, str) and word)


def without_placeholders(processor: Processor, messages: Sequence[Message]) -> list[Message]:
    """The messages; words for pictures are taken out of what the model itself answered.

    Raises:
        UserError: a user's text holds such a word, which a processor would take for a picture.
    """
    words = placeholders(processor)
    return [_without(words, message) for message in messages]


def _without(words: Sequence[str], message: Message) -> Message:
    content: list[Part] = []
    for part in message["content"]:
        text = part.get("text", "")
        while found := next((word for word in words if word in text), None):
            if message["role"] == "user":
                raise UserError(
                    f"a question cannot hold {found!r}, which stands for a picture in this model's prompts: "
                    f"write it in other words, and give pictures apart"
                )
            text = text.replace(found, "")
        content.append({"type": "text", "text": text} if part["type"] == "text" else part)
    return {"role": message["role"], "content": content}


@contextmanager
def narrow_pictures_refused(messages: Sequence[Message]) -> Iterator[None]:
    """While a processor prepares the messages: its refusal of a picture's shape becomes ours.

    Raises:
        UserError: the processor raised ValueError, and one of the pictures is narrow.
    """
    try:
        yield
    except ValueError as error:
        pictures = [part["image"] for message in messages for part in message["content"] if "image" in part]
        narrow = [image for image in pictures if max(image.size) >= NARROW * min(image.size)]
        if not narrow:
            raise
        width, height = narrow[0].size
        raise UserError(
            f"the model's processor takes no picture as narrow as {width} × {height} pixels: crop it"
        ) from error
