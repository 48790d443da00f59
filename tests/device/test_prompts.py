"""From pictures and words to a processor's inputs: upright pictures, and what a prompt can't hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.questions.question import Question, StoredImage
from tests.helpers.pictures import picture

BaseOf = Callable[[str, str], BaseModel]


@pytest.fixture
def sideways(tmp_path: Path) -> Path:
    """A photo as phones store it: its sensor's rows, and the orientation beside them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def test_a_phones_photo_enters_as_transformers_loads_it(base_of: BaseOf, sideways: Path):
    processor = base_of("llava", "llama").processor
    question = Question(
        id="0",
        instance="0",
        picture=StoredImage(sideways, "photo"),
        prompt="?",
        answer="",
        kind="other",
        topic="",
    )

    def pixels(*pictures: Image.Image | Path | str) -> np.ndarray:
        return encode_messages(processor, [user_message(pictures, "?")])["pixel_values"]

    expected = pixels(load_image(str(sideways)))
    with Image.open(sideways) as lying:
        assert not np.array_equal(pixels(Image.fromarray(np.asarray(lying))), expected), "it matters here"
        for found in (pixels(sideways), pixels(str(sideways)), pixels(lying), pixels(*question.images)):
            np.testing.assert_array_equal(found, expected)
