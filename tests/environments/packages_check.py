"""Opening packages where there is no torch: ``python -m tests.environments.packages_check FOLDER...``.

One line of JSON a package. The environment has nothing of the tests' own requirements, so none is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from scale_export.core.compare import relative_error
from scale_export.core.records import Float32
from scale_export.device.package import open_package
from scale_export.device.selftest import run_selftest

PICTURE, LOGITS, ANSWER = "picture.png", "logits.safetensors", "answer.json"
QUESTION = "where is the circle ?"
TOKENS = (3, 9, 4, 7)
"""What is fed as if it had been generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a package says: a greedy answer of 8 tokens, and logits ``[5, V]`` over ``TOKENS``."""

    answer: str
    logits: Float32


def ask(package: Path, picture: Path) -> Asked:
    """Open a package and ask it ``QUESTION`` about a picture."""
    opened = open_package(package, threads=1)
    with Image.open(picture) as image:
        return Asked(
            answer=opened.answer([image], QUESTION, max_new_tokens=8),
            logits=opened.logits([image], QUESTION, TOKENS),
        )


def compared(folder: Path) -> dict[str, object]:
    """What the package in a folder says here, against what is written beside it, and its self-test."""
    asked = ask(folder / "package", folder / PICTURE)
    expected = load_file(folder / LOGITS)["logits"]
    selftest = run_selftest(open_package(folder / "package", threads=1))
    same = expected.shape == asked.logits.shape
    return {
        "package": folder.name,
        "logits": relative_error(expected, asked.logits) if same else None,
        "bits": bool(same and np.array_equal(expected, asked.logits)),
        "answer": json.loads((folder / ANSWER).read_text(encoding="utf-8")) == asked.answer,
        "selftest": selftest.passed,
    }


def main(folders: Sequence[str]) -> None:
    """Ask each folder's package; what fails says so in its line and stops nothing."""
    for folder in map(Path, folders):
        try:
            found = compared(folder)
        except Exception as error:  # whatever a version of a library raises is the finding
            found = {"package": folder.name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if "torch" in sys.modules:
        raise SystemExit("torch was imported, and a device has none")
    main(sys.argv[1:])
