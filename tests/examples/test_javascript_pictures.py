"""Pixels of the TypeScript core, decoded by the Node example, against the package's Python path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scale_export.core.pictures import load_picture
from scale_export.families import load_family
from tests.helpers.javascript import claimed_families, driven
from tests.helpers.models import FAMILIES
from tests.helpers.picture_files import picture_files

QWEN = {"merge": 2, "frequencies": [[1.0, 0.1]] * 2, "window": 3, "learned_side": 5}
"""What packages of the Qwen families say of their towers; pixels don't depend on it."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return picture_files(tmp_path_factory.mktemp("pictures"))


def pixels(family: str, files: list[Path], directory: Path) -> list[tuple[Any, Any]]:
    """Of each file Python's pixel values and the core's, flat float32."""
    _, processor = FAMILIES[family].prepared()
    processor.save_pretrained(directory)
    driven(
        do="pixels",
        modelType=family,
        processor=str(directory),
        files=[str(file) for file in files],
        extras=QWEN,
    )
    loaded = load_family(family).load_processor(directory)
    pairs = []
    for file in files:
        text = loaded.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": load_picture(file)}]}],
            tokenize=True,
            return_dict=True,
            return_tensors="np",
        )
        expected = np.asarray(text["pixel_values"], np.float32).ravel()
        pairs.append((expected, np.fromfile(f"{file}.pixels", np.float32)))
    return pairs


@pytest.mark.parametrize("family", claimed_families())
def test_every_file_has_pythons_pixels_to_the_bit(family: str, pictures: list[Path], tmp_path: Path):
    assert len(pictures) >= 24
    for file, (expected, found) in zip(pictures, pixels(family, pictures, tmp_path), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=f"{family}: {file.name}")


def test_a_turned_picture_has_other_pixels(pictures: list[Path], tmp_path: Path):
    """So that EXIF orientation, left out on both sides, would not pass unseen."""
    turned = next(file for file in pictures if file.name == "exif6.jpg")
    ((right, found),) = pixels("llava", [turned], tmp_path)
    with Image.open(turned) as image:
        image.save(plain := tmp_path / "plain.png", exif=b"")
    ((as_stored, _),) = pixels("llava", [plain], tmp_path)
    assert np.array_equal(found, right) and not np.array_equal(found, as_stored)
