"""Plain text to calibrate on: windows in the chat template, half of each decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scale_export import UserError
from scale_export.core.progress import WorkLog
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.package.manifest import open_package_files
from scale_export.quantize import CalibrationOptions, plain_text
from scale_export.quantize.calibration import calibrate
from scale_export.quantize.frame import frame_of
from scale_export.quantize.plain_text import text_examples
from scale_export.quantize.sources import TextSource
from tests.helpers.coefficients import random_coefficients
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture
from tests.helpers.variants import variant_of

BaseOf = Callable[[str, str], BaseModel]
WORDS = "where is the circle ? is the red circle left of the blue square ? "
QUIET = WorkLog(quiet=True)
TRAINED = Path(__file__).parents[2] / "examples/tiny_vlm"
"""Its best tokens are sure, where a random model's hang on rounding."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with two texts and something else."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text(WORDS * 8, encoding="utf-8")
    (folder / "more/b.txt").write_text(WORDS * 4, encoding="utf-8-sig")
    (folder / "c.md").write_text("not this", encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"paligemma"}))
def test_a_frame_is_the_prompt_of_any_words(family: str, base_of: BaseOf):
    processor = base_of(family, variant_of(family)).processor
    for images in ((), (picture(1),)):
        frame = frame_of(processor, images)
        expected = encode_messages(processor, [user_message(images, "the circle")])
        words = processor.tokenizer("the circle", add_special_tokens=False).input_ids
        made = frame.filled(words)
        assert made.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(made[name], value, err_msg=name)


def test_windows_are_the_texts_tokens_in_their_order(base_of: BaseOf, text: Path):
    base = base_of("llava", "llama")
    tokenizer, frame = base.processor.tokenizer, frame_of(base.processor, ())
    examples = text_examples(base, TextSource(text, 16), 128)
    found = []
    for example in examples:
        ids = example.inputs["input_ids"][0].tolist()
        assert tuple(ids[frame.start + 8 :]) == frame.after and len(example.target) == 8
        found += [*ids[frame.start : frame.start + 8], *example.target]
    whole = [tokenizer(WORDS * times, add_special_tokens=False).input_ids for times in (8, 4)]
    assert found == [i for ids in whole for i in ids[: len(ids) // 16 * 16]]
    few = text_examples(base, TextSource(text, 16), 3)
    assert [e.target for e in few] == [examples[n * len(examples) // 3].target for n in range(3)]


def test_words_for_pictures_are_left_out(base_of: BaseOf, tmp_path: Path):
    base = base_of("llava", "llama")
    (tmp_path / "a.txt").write_text("<image> " + WORDS * 2, encoding="utf-8")
    examples = text_examples(base, TextSource(tmp_path, 8), 128)
    ids = {i for e in examples for i in (*e.inputs["input_ids"][0].tolist(), *e.target)}
    assert examples and base.image_token_id not in ids


def test_the_decoded_half_carries_the_scalars(base_of: BaseOf, text: Path, tmp_path: Path):
    """Sabotage: with scope ``last`` the scalars reach half of the window's positions, and none but one of a prompt."""
    base = base_of("llava", "llama")
    spec = f"text:{text},tokens=16"
    moments = []
    for scope in ("last", "all"):
        coefficients = random_coefficients(base, scope)  # type: ignore[arg-type]
        found = calibrate(base, coefficients, CalibrationOptions(source=spec), QUIET, tmp_path)
        moments.append(found.moments("layers.0.o_proj"))
    scalars = random_coefficients(base)
    ones = replace(
        scalars,
        head_scale=tuple(np.ones_like(row) for row in scalars.head_scale),
        mlp_scale=np.ones_like(scalars.mlp_scale),
    )
    plain = calibrate(base, ones, CalibrationOptions(source=spec), QUIET, tmp_path).moments("layers.0.o_proj")
    last, every = moments
    assert last is not None and every is not None and plain is not None
    moved = np.abs(last.matrix - plain.matrix).sum() / np.abs(every.matrix - plain.matrix).sum()
    assert 0.2 < moved < 0.8


@pytest.mark.parametrize(
    ("content", "tokens", "words"),
    [
        (WORDS.encode(), 500, "fewer than 500 tokens in each of its files"),
        (b"\xff" + WORDS.encode(), 16, "is not UTF-8 from byte 1 on"),
        (WORDS.encode(), 2000, "the model's context holds"),
        (WORDS.encode() * 20, 16, "takes the text beyond 1,000 bytes"),
    ],
)
def test_a_text_that_cannot_be_taken_is_one_sentence(
    content: bytes, tokens: int, words: str, base_of: BaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plain_text, "MOST_BYTES", 1000)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        text_examples(base_of("llava", "llama"), TextSource(tmp_path / "a.txt", tokens), 128)


def test_a_model_that_needs_pictures_takes_no_text(base_of: BaseOf, text: Path):
    base = base_of("paligemma", "own")
    with pytest.raises(UserError, match="takes no words without a picture"):
        text_examples(base, TextSource(text, 16), 128)


@pytest.mark.slow
def test_a_package_calibrated_on_text_says_so_without_the_place(text: Path, tmp_path: Path):
    base = opened_once(TRAINED / "model")
    coeffs = TRAINED / "spatial_all.pt"
    asked = {
        "precision": "int8",
        "quantizer": "gptq",
        "calib": f"text:{text},tokens=16",
        "evaluation": "none",
    }
    outcome = fold_on(base, coeffs, "cpu", out=tmp_path / "package", cache=tmp_path / "cache", **asked)
    assert outcome.passed
    facts = open_package_files(tmp_path / "package").manifest.calibration
    assert facts is not None and facts.questions == "text:tokens=16" and not facts.pictures
    assert str(tmp_path) not in (tmp_path / "package/manifest.json").read_text(encoding="utf-8")
