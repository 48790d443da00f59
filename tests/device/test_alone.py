"""``scale_export/device`` can be lifted out: it runs packages without torch, exporting libraries or a room above it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import open_package
from tests.architecture import FLOORS, PACKAGE, modules
from tests.device import alone
from tests.helpers.pictures import picture

QUESTION = "where is the red circle ?"
FLOOR = FLOORS.index(("device",))
ABOVE = [room for rooms in FLOORS[FLOOR + 1 :] for room in rooms if not room.startswith("__")]


def run_alone(package: Path, tmp_path: Path, source: Path = PACKAGE) -> subprocess.CompletedProcess[str]:
    """``alone.py`` in a process of its own, which finds ``scale_export`` at ``source``."""
    picture().save(tmp_path / "scene.png")
    asked = [package, tmp_path / "scene.png", QUESTION, tmp_path / "logits.npy", *ABOVE]
    return subprocess.run(
        [sys.executable, "-P", alone.__file__, *map(str, asked)],
        env=os.environ | {"PYTHONPATH": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["package", "phone_package"])
def test_a_package_answers_and_tests_itself_alone(kind: str, request: Any, tmp_path: Path):
    package: Path = request.getfixturevalue(kind)
    done = run_alone(package, tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    rooms = {f"scale_export.{name}" for name in modules() if name.startswith("device.")}
    assert set(told["imported"]) == rooms
    assert told["selftest"]["passed"]
    opened = open_package(package, threads=1)
    assert told["answer"] == opened.answer([picture()], QUESTION, max_new_tokens=4)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), opened.logits([picture()], QUESTION))


@pytest.mark.parametrize("planted", ["torch", "onnx_ir", "coremltools", "scale_export.plan"])
def test_a_planted_import_fails(tmp_path: Path, planted: str):
    copy = shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "device" / "bench.py").open("a", encoding="utf-8") as module:
        module.write(f"\nimport {planted}\n")
    done = run_alone(tmp_path / "no package is reached", tmp_path, copy)
    assert done.returncode != 0 and f"import of {planted.rpartition('.make')[0] or planted}" in done.stderr
