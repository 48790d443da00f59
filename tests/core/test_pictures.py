"""``load_picture``: transformers' pixels for every orientation, mode and format, and a sentence for the rest."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from transformers.image_utils import load_image

from scale_export import UserError
from scale_export.core import pictures
from scale_export.core.pictures import load_picture
from tests.helpers.pictures import picture

ORIENTATION = 0x0112
SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "GIF": "gif",
    "MPO": "mpo",
}


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def turned(directory: Path, orientation: int, format: str = "JPEG") -> Path:
    """A picture in a file that says how it is to be turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = directory / f"{orientation}.{SUFFIXES[format]}"
    picture(size=(40, 24)).save(path, format=format, exif=exif)
    return path


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_transformers_loads_it(tmp_path: Path, orientation: int, format: str):
    path = turned(tmp_path, orientation, format)
    expected = pixels(load_image(str(path)))
    assert expected.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    np.testing.assert_array_equal(pixels(load_picture(path)), expected)
    np.testing.assert_array_equal(pixels(load_picture(str(path))), expected)
    np.testing.assert_array_equal(pixels(load_picture(path.read_bytes())), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(pixels(load_picture(opened)), expected)
        again = load_picture(load_picture(opened))
    np.testing.assert_array_equal(pixels(again), expected)


def test_an_orientation_changes_left_and_right(tmp_path: Path):
    """A loader that ignores it is not equal: the pixels of the file as they lie."""
    path = turned(tmp_path, 2, "PNG")
    with Image.open(path) as lying:
        stored = np.asarray(lying.convert("RGB"))
    np.testing.assert_array_equal(pixels(load_picture(path)), stored[:, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_is_as_transformers_loads_it(tmp_path: Path, mode: str):
    path = tmp_path / "picture.png"
    image = picture().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)
    expected = pixels(load_image(str(path)))
    np.testing.assert_array_equal(pixels(load_picture(path)), expected)
    np.testing.assert_array_equal(pixels(load_picture(image)), pixels(load_image(image)))


@pytest.mark.parametrize("format", sorted(SUFFIXES))
def test_every_format_is_as_transformers_loads_it(tmp_path: Path, format: str):
    path = tmp_path / f"picture.{SUFFIXES[format]}"
    frames = [picture(seed, (40, 24)) for seed in range(2)]
    many = {"save_all": True, "append_images": frames[1:]} if format in ("GIF", "TIFF", "MPO", "WEBP") else {}
    frames[0].save(path, format=format, **many)
    np.testing.assert_array_equal(pixels(load_picture(path)), pixels(load_image(str(path))))


def test_cmyk_photos_are_as_transformers_loads_them(tmp_path: Path):
    path = tmp_path / "print.jpg"
    picture().convert("CMYK").save(path)
    np.testing.assert_array_equal(pixels(load_picture(path)), pixels(load_image(str(path))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_the_upper_byte(tmp_path: Path, suffix: str):
    levels = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(levels).save(path)
    found = pixels(load_picture(path))
    np.testing.assert_array_equal(found, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(pixels(load_picture(Image.fromarray(levels))), found)
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) == 256


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floats"), (np.int32, "integers")])
def test_values_without_a_range_are_refused(tmp_path: Path, dtype: type, kind: str):
    path = tmp_path / "depth.tif"
    Image.fromarray(np.linspace(0, 1000, 64).astype(dtype).reshape(8, 8)).save(path)
    for source in (path, Image.open(path)):
        with pytest.raises(UserError, match=f"depth.tif holds {kind} of 32 bits"):
            load_picture(source)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("EPS", lambda: POSTSCRIPT),
        ("PDF", lambda: encoded("PDF")),
        ("SVG or XML", lambda: b"<?xml version='1.0'?><svg/>"),
        ("HEIC", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)),
        ("PPM", lambda: encoded("PPM")),
        ("ICO", lambda: encoded("ICO")),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, format: str, content: Callable[[], bytes]):
    path = tmp_path / "scene.png"  # the content counts, not the name
    path.write_bytes(content())
    for source in (path, path.read_bytes()):
        with pytest.raises(
            UserError, match=rf"its format is {format}\): PNG, JPEG, MPO, WebP, GIF, BMP and TIFF"
        ):
            load_picture(source)


def test_postscript_reaches_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import EpsImagePlugin

    def called(*arguments: object, **named: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", called)
    path = tmp_path / "scene.eps"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match="its format is EPS"):
        load_picture(path)


def test_what_is_no_picture_is_refused(tmp_path: Path):
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.png"
    text.write_text("left of")
    cut.write_bytes(encoded("PNG")[:200])
    with pytest.raises(UserError, match=r"there is no picture .*absent\.png: check the path"):
        load_picture(tmp_path / "absent.png")
    with pytest.raises(UserError, match=r"notes\.txt cannot be read as a picture: PNG"):
        load_picture(text)
    for source in (cut, tmp_path):
        with pytest.raises(UserError, match=rf"{source.name} cannot be read as a picture \("):
            load_picture(source)
    with pytest.raises(UserError, match="row 3: cut cannot be read"):
        load_picture(cut.read_bytes(), "row 3: cut")
    for length in range(40):  # also shorter than any format's mark
        with pytest.raises(UserError, match="cannot be read as a picture"):
            load_picture(bytes(length))
        with pytest.raises(UserError, match="cannot be read as a picture"):
            load_picture(b"\n" * length)
    with pytest.raises(UserError, match="no pixels"):
        load_picture(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("source", ["https://example.org/a.png", Path("https://example.org/a.png")])
def test_an_address_is_refused(source: str | Path):
    with pytest.raises(UserError, match=r"^https://example\.org/a\.png is an address, .*: download it"):
        load_picture(source)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "huge.png"
    Image.new("1", (15000, 12000)).save(path)  # 180 megapixels in a few kilobytes
    for source in (path, path.read_bytes()):
        with pytest.raises(UserError, match="has more than 179 megapixels, and at most 179 are taken"):
            load_picture(source)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some programs set it for themselves
    with pytest.raises(UserError, match="has 180 megapixels"):
        load_picture(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_pictures_are_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str):
    path = tmp_path / f"large.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    ramp = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8)
    Image.fromarray(ramp).convert("RGB").save(path, exif=exif)
    whole = load_picture(path)
    monkeypatch.setattr(pictures, "WHOLE", 90 * 120 - 1)
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size) or load(image))
    halved = load_picture(path)
    assert set(decoded) == {(60, 45) if suffix == "jpg" else (120, 90)}, "a JPEG is never decoded whole"
    assert whole.size == (90, 120) and halved.size == (45, 60)
    difference = np.abs(pixels(whole.reduce(2)).astype(int) - pixels(halved))
    assert difference.max() <= (0 if suffix == "png" else 4)


def test_a_large_picture_brings_no_warning_of_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    path = tmp_path / "large.png"
    picture().save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(path).size == (64, 48)
