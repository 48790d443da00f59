"""A package is for its life what it was when it was opened: what is swapped, changed or cut later is never used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError, open_package
from scale_export.device import package as package_module
from tests.helpers.pictures import picture

QUESTION = "where is the red circle ?"


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "package")
    return tmp_path / "package"


def swap(file: Path) -> None:
    """Another file takes the name, with the same size and times."""
    status, content = file.stat(), file.read_bytes()
    file.unlink()
    file.write_bytes(bytes(reversed(content)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(file: Path) -> None:
    """Other bytes in the same file, its times put back."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"\0" * 16)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


CHANGES: tuple[Callable[[Path], None], ...] = (swap, overwrite, truncate, Path.unlink)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.onnx.data", "tokenizer.json", "config.json"])
def test_what_changes_after_opening_is_refused_at_first_use(
    name: str, change: Callable[[Path], None], copy: Path
):
    opened = open_package(copy)
    change(copy / name)
    with pytest.raises(UserError, match=rf"{name} was changed or replaced since the package was opened"):
        opened.answer([picture()], QUESTION)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_in_use_is_refused_at_the_next_question(change: Callable[[Path], None], copy: Path):
    opened = open_package(copy)
    opened.answer([picture()], QUESTION, max_new_tokens=1)
    change(copy / "tokenizer.json")
    with pytest.raises(UserError, match="was changed or replaced"):
        opened.answer([picture()], QUESTION)


def test_what_is_swapped_while_the_runtime_loads_it_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch):
    real = package_module.open_engine

    def slow(*arguments: Any, **options: Any) -> Any:
        engine = real(*arguments, **options)
        swap(copy / "decoder.onnx.data")
        return engine

    monkeypatch.setattr(package_module, "open_engine", slow)
    with pytest.raises(UserError, match="was changed or replaced"):
        open_package(copy).answer([picture()], QUESTION)


def test_what_is_swapped_while_the_signature_is_checked_is_refused(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(package_module, "check_signature", lambda *_: swap(copy / "decoder.onnx"))
    with pytest.raises(UserError, match="was changed or replaced"):
        open_package(copy, public_key=tmp_path / "any.pub")


def test_nothing_changed_is_nothing_refused(copy: Path):
    opened = open_package(copy)
    opened.files.check_unchanged()
    assert opened.answer([picture()], QUESTION, max_new_tokens=2) == opened.answer(
        [picture()], QUESTION, max_new_tokens=2
    )
