"""``make docs``: pages of every public module, without a warning, with every public name."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scale_export
from scale_export.core import errors

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/api.py"


@pytest.fixture(scope="module")
def builder() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_every_public_name_has_its_place(builder: dict[str, Any], tmp_path: Path):
    command = [sys.executable, SCRIPT, "--out", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    assert scale_export.__all__
    for name in builder["PUBLIC_MODULES"]:
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8")
        missing = {n for n in importlib.import_module(name).__all__ if f'id="{n}"' not in page}
        assert missing <= {"__version__"}, name


def test_a_name_that_does_not_exist_ends_the_build(
    builder: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(errors, "__all__", ["UserError", "NoSuchError"])
    with pytest.raises(UserWarning, match="NoSuchError"):
        builder["build"](tmp_path)


def test_the_page_for_people_names_the_public_modules(builder: dict[str, Any]):
    table = (ROOT / "docs/python.md").read_text(encoding="utf-8").partition("## Public modules")[2]
    rows = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(scale_export[\w.]*)`", rows)) == set(builder["PUBLIC_MODULES"])
