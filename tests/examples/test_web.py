"""The web page in headless Chromium: answers as Python's, refusals, self-test, offline, for every visitor."""

from __future__ import annotations

import filecmp
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scale_export import open_package
from scale_export.core.pictures import load_picture
from scale_export.device.certificate import device_leg, read_result
from scale_export.questions import load_questions
from tests.helpers.browser import WEB, needs_browser, visited
from tests.helpers.cli import run
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.forged_graphs import beyond_memory, ignoring_the_gate, with_defaults
from tests.helpers.javascript import EXAMPLES
from tests.helpers.packages import reseal
from tests.helpers.picture_files import picture_files

TINY = EXAMPLES / "tiny_vlm"
SCENES = WEB / "public/scenes"
PACKAGES = {
    "tiny": (TINY, "int4"),
    "float32": (TINY, "float32"),
    "small": (EXAMPLES / "small_vlm", "int4"),
}
QUESTIONS = 104
STRENGTHS = ("0", "0.5", "1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages good and bad, pictures, and questions with Python's answers."""
    needs_browser()
    out = tmp_path_factory.mktemp("web")
    for name, (model, precision) in PACKAGES.items():
        base, scalars = opened_once(model / "model"), model / "spatial.pt"
        asked = {"out": out / name, "precision": precision, "evaluation": "none"}
        assert fold_on(base, scalars, "web", **asked).passed
    lay_bad_packages(out)
    lay_pictures(out)
    lay_decoded(out)
    lay_questions(out)
    return out


def lay_bad_packages(out: Path) -> None:
    def damage(package: Path) -> None:
        """By a name of its own: a package that is kept already isn't read again."""
        reseal(package, lambda table: table.update(name="damaged"))
        data = bytearray((package / "decoder.onnx.data").read_bytes())
        data[1000] ^= 1
        (package / "decoder.onnx.data").write_bytes(data)

    changes = {
        "other": lambda package: reseal(package, lambda table: table.update(name="other")),
        "damaged": damage,
        "family": lambda package: reseal(package, lambda table: table.update(model_type="paligemma")),
        "older": lambda package: reseal(package, lambda table: table.update(schema=1)),
        "dropped": with_defaults,
        "ignoring": ignoring_the_gate,
        "memory": beyond_memory,
    }
    for name, change in changes.items():
        shutil.copytree(out / "tiny", out / name)
        change(out / name)


def lay_pictures(out: Path) -> None:
    """The shipped scene as other files that show it: Python answers alike to each."""
    scene = Image.open(TINY / "scene.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.transpose(Image.Transpose.ROTATE_90).save(out / "turned.jpg", quality=95, exif=exif)
    unseen = scene.copy()
    unseen.putalpha(0)
    unseen.save(out / "unseen.png")
    scene.save(out / "grey.webp", lossless=True)
    names = ["turned.jpg", "unseen.png", "grey.webp"]
    question, answer = ((TINY / f"{name}.txt").read_text().strip() for name in ("question", "answer"))
    package = open_package(out / "tiny", threads=1)
    assert [package.answer([out / name], question, max_new_tokens=16) for name in names] == [answer] * len(
        names
    )
    (out / "pictures.json").write_text(json.dumps(names))


def lay_decoded(out: Path) -> None:
    """Pictures of every kind, each with its RGB as a processor sees it; browsers know no TIFF."""
    (out / "pictures").mkdir()
    files = picture_files(out / "pictures")
    for file in files:
        image = load_picture(file)
        if "transparency" in image.info:  # of a palette; transformers puts white under it
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            ).convert("RGB")
        Path(f"{file}.rgb").write_bytes(image.tobytes())
    table = {
        "pixels": [file.name for file in files if file.suffix != ".tiff"],
        "refused": [file.name for file in files if file.suffix == ".tiff"],
    }
    (out / "decoded.json").write_text(json.dumps(table))


def lay_questions(out: Path) -> None:
    package = open_package(out / "tiny", threads=1)
    asked: list[dict[str, Any]] = []
    for question in load_questions("gridworld", "test", limit=QUESTIONS):
        file = out / f"{question.instance}.png"
        question.images[0].save(file)
        answer = package.answer([file], question.prompt, max_new_tokens=16)
        asked.append({"file": file.name, "prompt": question.prompt, "answer": answer})
    (out / "questions.json").write_text(json.dumps(asked))
    table: list[dict[str, Any]] = []
    first = json.loads((SCENES / "scenes.json").read_text())[0]
    for question in (known["question"] for known in first["questions"][:4]):
        answers = {}
        for strength in STRENGTHS:
            package.scale = float(strength)
            answers[strength] = package.answer([SCENES / first["file"]], question, max_new_tokens=16)
        table.append({"question": question, "answers": answers})
    (out / "strengths.json").write_text(json.dumps(table))


def test_the_page(laid: Path):
    """In one test, so that its packages are made once. Then ``verify`` takes the results that the page saved."""
    visited(sorted((WEB / "test").glob("*.test.js")), laid)
    for name in PACKAGES:
        package = open_package(laid / name, threads=1)
        leg = device_leg(package.files, package, read_result(laid / f"{name}.json"))
        assert leg.passed, name
        if name == "float32":
            assert leg.error.finite is not None and leg.error.finite <= 1e-5
    asked = ("--selftest", "--device-result", str(laid / "tiny.json"))
    assert run("verify", str(laid / "tiny"), *asked) == 0
    assert run("verify", str(laid / "other"), *asked) == 2


def test_the_scenes_are_those_of_the_script(tmp_path: Path):
    runpy.run_path(str(WEB / "scenes.py"))["write"](tmp_path)
    names = sorted(file.name for file in SCENES.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        if name.endswith(".json"):
            assert filecmp.cmp(SCENES / name, tmp_path / name, shallow=False)
        else:
            assert (
                Image.open(SCENES / name).convert("RGB").tobytes()
                == Image.open(tmp_path / name).convert("RGB").tobytes()
            )
