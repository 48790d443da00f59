"""What a package takes over of a base model: its own files, and nothing that a link reaches elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest

from scale_export.backends.checkpoint.writer import copy_other_files
from scale_export.backends.processor import copy_processor
from scale_export.core.errors import UserError
from tests.helpers.trees import place, tree

OWN = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "tokenizer.model": b"x",
    "merges.txt": b"x",
    "LICENSE.txt": b"x",
    "additional_chat_templates/tools.jinja": b"x",
}
OTHER = {"notes.txt": b"x", "train.py": b"x", "manifest.json": b"x", ".env": b"x", "deeper/config.json": b"x"}


def processor_files(source: Path, directory: Path) -> None:
    base: Any = SimpleNamespace(directory=source, picture_size=None)
    copy_processor(base, directory)


COPIES = pytest.mark.parametrize("copy", [copy_other_files, processor_files])
Copy = Callable[[Path, Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, content in {**OWN, **OTHER}.items():
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "out").mkdir()
    return tmp_path / "base"


def test_a_models_own_files_are_copied_and_no_others(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "more_notes.txt").symlink_to(tmp_path / "secret")
    copy_other_files(source, tmp_path / "out")
    assert tree(tmp_path / "out") == OWN


@COPIES
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "loop"])
def test_what_is_no_file_of_the_model_is_refused(kind: str, copy: Copy, source: Path, tmp_path: Path) -> None:
    place(source / "tokenizer.json", kind, tmp_path / "secret")
    if (copy, kind) == (copy_other_files, "directory"):
        copy(source, tmp_path / "out")  # which makes no file of it
        assert "tokenizer.json" not in tree(tmp_path / "out")
        return
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        copy(source, tmp_path / "out")
    assert "tokenizer.json" not in tree(tmp_path / "out")


@pytest.mark.parametrize("name", ["additional_chat_templates/tools.jinja", "additional_chat_templates"])
def test_links_out_of_a_copied_folder_are_refused(name: str, source: Path, tmp_path: Path) -> None:
    place(source / name, "link", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"tools\.jinja"):
        copy_other_files(source, tmp_path / "out")


@COPIES
def test_links_of_the_hubs_cache_are_followed(
    copy: Copy, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot of a cache anywhere, and a directory that links to blobs of this user's cache."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    blobs, snapshot = cache / "models--a" / "blobs", cache / "models--a" / "snapshots" / "1"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "0").write_bytes(b"blob")
    (snapshot / "config.json").symlink_to("../../blobs/0")
    (source / "config.json").unlink()
    (source / "config.json").symlink_to(blobs / "0")
    for directory in (snapshot, source):
        copy(directory, tmp_path / "out")
        assert (tmp_path / "out" / "config.json").read_bytes() == b"blob"
        (tmp_path / "out" / "config.json").unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    copy(snapshot, tmp_path / "out")
    with pytest.raises(UserError, match="hub's cache"):
        copy(source, tmp_path / "out")
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs" / "main").write_bytes(b"not a blob")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../refs/main")
    with pytest.raises(UserError, match="hub's cache"):
        copy(snapshot, tmp_path / "out")
