"""Extras bring what they are named for, and no sentence names one that there isn't."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from scale_export.core.extras import EXPORTING, EXTRA_OF

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {
    "coreai": "coreai-core",
    "coreai_torch": "coreai-torch",
    "model_signing": "model-signing",
} | {"onnxruntime_genai": "onnxruntime-genai"}
"""Library → its distribution, where their names differ."""


def brought_by(extra: str) -> set[str]:
    """The distributions that an extra asks for, through other extras too."""
    found = set()
    for asked in EXTRAS[extra]:
        if more := re.match(r"scale-export\[(.*?)\]", asked):
            found |= {name for inner in more[1].split(",") for name in brought_by(inner)}
        else:
            found.add(re.split(r"[<>=~;\[ ]", asked)[0])
    return found


@pytest.mark.parametrize(("library", "extra"), EXTRA_OF.items())
def test_the_extra_that_a_sentence_names_brings_the_library(library: str, extra: str):
    assert DISTRIBUTIONS.get(library, library) in brought_by(extra)


@pytest.mark.parametrize("extra", ["onnx", "export", "coreai", "train"])
def test_an_extra_that_exports_brings_what_every_export_asks_for(extra: str):
    """``fold --target coreai`` refused with ``[coreai]`` alone, for want of onnx."""
    assert set(EXPORTING) <= brought_by(extra)


PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(ROOT / "scale_export").rglob("*.py"),
    *ROOT.glob("examples/ci/*.yml"),
]


def test_every_extra_that_is_named_exists():
    named = {
        name
        for page in PAGES
        for found in re.findall(r"scale-export\[([\w,]+)\]", page.read_text(encoding="utf-8"))
        for name in found.split(",")
    }
    assert (
        named <= set(EXTRAS)
        and {"export", "onnx", "ort", "coreml", "coreai", "sign", "data", "train"} <= named
    )
