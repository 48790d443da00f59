"""From pictures and words to a processor's inputs: upright pictures, and what a prompt can't hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from scale_export import UserError
from scale_export.core.huggingface import Processor
from scale_export.device.prompts import (
    assistant_message,
    encode_messages,
    narrow_pictures_refused,
    placeholders,
    user_message,
)
from scale_export.families import load_family
from scale_export.model.asking import encode_prompts
from scale_export.model.base import BaseModel
from scale_export.questions.question import Question, StoredImage
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture

BaseOf = Callable[[str, str], BaseModel]


def asking(prompt: str, image: Image.Image | StoredImage | None = None) -> Question:
    pictures = () if image is None else (image,)
    return Question(id="0", instance="0", pictures=pictures, prompt=prompt, answer="", kind="other", topic="")


@pytest.fixture(scope="module")
def processor_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Processor]:
    """A family's processor beside a random model, as a package opens it."""

    @functools.cache
    def build(family: str) -> Processor:
        directory = tmp_path_factory.mktemp(family)
        FAMILIES[family]("llama", directory=directory)
        return load_family(family).load_processor(directory)

    return build


@pytest.fixture
def sideways(tmp_path: Path) -> Path:
    """A photo as phones store it: its sensor's rows, and the orientation beside them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def test_a_phones_photo_enters_as_transformers_loads_it(base_of: BaseOf, sideways: Path):
    processor = base_of("llava", "llama").processor
    question = asking("?", StoredImage(sideways, "photo"))

    def pixels(*pictures: Image.Image | Path | str) -> np.ndarray:
        return encode_messages(processor, [user_message(pictures, "?")])["pixel_values"]

    expected = pixels(load_image(str(sideways)))
    with Image.open(sideways) as lying:
        assert not np.array_equal(pixels(Image.fromarray(np.asarray(lying))), expected), "it matters here"
        for found in (pixels(sideways), pixels(str(sideways)), pixels(lying), pixels(*question.images)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_word_for_a_picture_is_refused_in_a_question(processor_of: Callable[[str], Processor], family: str):
    """Processors end in a ValueError, or count a picture that isn't there."""
    processor = processor_of(family)
    words = placeholders(processor)
    assert processor.tokenizer.convert_ids_to_tokens(processor.image_token_id) in words
    for word in words:
        for pictures in ([], [picture()]):
            with pytest.raises(UserError, match=f"a question cannot hold '{word}'"):
                encode_messages(processor, [user_message(pictures, f"what does {word} mean ?")])
        with pytest.raises(UserError, match=f"a question cannot hold '{word}'"):
            encode_prompts(processor, [asking(word)])


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_a_chat_goes_on_after_a_model_said_such_a_word(processor_of: Callable[[str], Processor], family: str):
    processor = processor_of(family)

    def ids(answer: str) -> list[int]:
        chat = [
            user_message([picture()], "where ?"),
            assistant_message(answer),
            user_message([], "why ?"),
        ]
        return encode_messages(processor, chat)["input_ids"].tolist()

    for word in placeholders(processor):
        half = len(word) // 2
        assert ids(f"left{word} of") == ids(f"left{word[:half]}{word}{word[half:]} of") == ids("left of")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava_pixtral"])
def test_a_picture_too_narrow_for_a_processor_is_refused(
    processor_of: Callable[[str], Processor], family: str
):
    processor = processor_of(family)
    line = Image.new("RGB", (500, 1))
    for asked in (
        lambda: encode_messages(processor, [user_message([picture(), line], "?")]),
        lambda: encode_prompts(processor, [asking("?", line)]),
    ):
        with pytest.raises(UserError, match="no picture as narrow as 500 × 1 pixels: crop it"):
            asked()


def test_another_mistake_of_a_processors_keeps_its_name():
    with pytest.raises(ValueError, match="ours"), narrow_pictures_refused([user_message([picture()], "?")]):
        raise ValueError("ours")
