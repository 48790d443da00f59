"""What scale-export keeps on a disk is shown and removed, and nothing else is touched."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scale_export.core.cache import cache_entries, default_cache
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel
from scale_export.quantize import CalibrationOptions
from scale_export.quantize.calibration import calibrate
from tests.helpers.cli import last_json, run
from tests.helpers.coefficients import random_coefficients
from tests.helpers.trees import tree

OLD, NEW = "0" * 32, "a" * 32


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two entries, the first 40 days old and with what a killed run left, and strangers of every kind."""
    for name in (OLD, NEW):
        folder = tmp_path / "cache/calibration" / name
        folder.mkdir(parents=True)
        for file in (
            "layers.0.safetensors",
            "layers.0.json",
            "output.safetensors",
            "run.json",
            "layers.1.77.part",
        ):
            (folder / file).write_bytes(b"12345")
            if name == OLD:
                os.utime(folder / file, (time.time() - 40 * 86_400,) * 2)
    cache = tmp_path / "cache"
    (cache / "written").mkdir()
    (cache / f"written/{NEW}.json").write_bytes(b"chat")
    (cache / "written/chats.json").write_bytes(b"mine")
    (cache / "calibration" / NEW / "notes.txt").write_bytes(b"mine")
    (cache / "calibration/photos").mkdir()
    (cache / "calibration/photos/run.json").write_bytes(b"mine")
    (cache / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/run.json").write_bytes(b"mine")
    (cache / "calibration" / ("b" * 32)).symlink_to(tmp_path / "elsewhere")
    return cache


def test_it_shows_entries_and_their_size(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place)
    assert run("cache", "--cache", str(place), "--json") == 0
    shown = last_json(capsys)
    names = [entry["name"] for entry in shown["entries"]]
    assert sorted(names[:2]) == [f"calibration/{NEW}", f"written/{NEW}"] and names[2:] == [
        f"calibration/{OLD}"
    ]
    assert shown["bytes"] == 54 and shown["removed"] is False
    assert tree(place) == before


def test_cleaning_removes_ours_alone(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cache", "--clean", "--older-than", "30", "--cache", str(place), "--json") == 0
    assert [entry["name"] for entry in last_json(capsys)["entries"]] == [f"calibration/{OLD}"]
    assert not (place / "calibration" / OLD).exists() and (place / "calibration" / NEW / "run.json").exists()
    assert run("cache", "--clean", "--cache", str(place)) == 0
    assert "2 entries" in capsys.readouterr().out
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        f"cache/calibration/{NEW}/notes.txt",
        "cache/calibration/photos/run.json",
        "cache/model.safetensors",
        "cache/written/chats.json",
        "elsewhere/run.json",
    }


def test_an_entry_that_a_calibration_wrote_is_found_whole(
    base_of: Callable[[str, str], BaseModel], tmp_path: Path
) -> None:
    base = base_of("llava", "llama")
    options = CalibrationOptions(source="self:2", limit=2)
    calibrate(base, random_coefficients(base), options, WorkLog(quiet=True), tmp_path)
    entries = cache_entries(tmp_path)
    assert {file for entry in entries for file in entry.files} == {
        p for p in tmp_path.rglob("*") if p.is_file()
    }
    assert {entry.name.partition("/")[0] for entry in entries} == {"calibration", "written"}


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALE_EXPORT_CACHE", str(tmp_path / "none"))
    assert default_cache() == tmp_path / "none" and cache_entries() == []
    assert run("cache", "--clean") == 0 and not (tmp_path / "none").exists()
