"""Names out of files lead to regular files inside their folder, and to nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scale_export.coefficients.file import load_coefficients
from scale_export.core.errors import UserError
from scale_export.core.inside import colliding, file_inside, is_inside_name
from scale_export.core.pictures import load_picture
from scale_export.model.base import open_base
from scale_export.plan.targets import load_target
from scale_export.quantize.bits import read_bits_plan
from tests.helpers.trees import place

OUTSIDE = [
    "../x",
    "/etc/hostname",
    "a/../../x",
    "./x",
    "a//x",
    "",
    "a/",
    "..",
    ".",
    "a\\x",
    "..\\x",
    "C:x",
    "a\0",
    "\x1b",
]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3, ["x"]])
def test_a_name_that_leads_elsewhere_is_refused(name: object, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    assert not is_inside_name(name)
    with pytest.raises(UserError, match="none inside"):
        file_inside(tmp_path / "in", name, "the list")


def test_a_file_inside_is_found_through_links_that_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("deep/er/x")
    (tmp_path / "folder").symlink_to("deep")
    for name in ("deep/er/x", "link", "folder/er/x"):
        assert file_inside(tmp_path, name, "the list").read_bytes() == b"1"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "loop"])
def test_what_is_no_regular_file_inside_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    place(folder / "x", kind, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads out|not a regular file|is missing"):
        file_inside(folder, "x", "the list")


READERS: dict[str, Callable[[Path], object]] = {
    "spatial.pt": load_coefficients,
    "spatial.safetensors": load_coefficients,
    "picture.png": load_picture,
    "target.toml": load_target,
    "bits.toml": read_bits_plan,
}


@pytest.mark.parametrize("name", READERS)
def test_what_may_never_end_is_not_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="give a regular file"):
        READERS[name](tmp_path / name)


def test_a_base_model_with_a_pipe_in_it_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="is a pipe, a socket or a device"):
        open_base(str(tmp_path))


def test_a_folder_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"secret")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="leads out"):
        file_inside(tmp_path / "in", "folder/x", "the list")


def test_a_snapshot_reaches_the_blobs_of_its_own_cache_alone(tmp_path: Path) -> None:
    for model in ("models--a", "models--b"):
        (tmp_path / model / "blobs").mkdir(parents=True)
        (tmp_path / model / "blobs" / "0").write_bytes(model.encode())
    snapshot = tmp_path / "models--a" / "snapshots" / "1"
    (snapshot / "deep").mkdir(parents=True)
    (snapshot / "deep" / "x").symlink_to("../../../blobs/0")
    (snapshot / "deep" / "y").symlink_to("../../../../models--b/blobs/0")
    assert file_inside(snapshot, "deep/x", "the list").read_bytes() == b"models--a"
    assert file_inside(snapshot / "deep", "x", "the list").read_bytes() == b"models--a"
    with pytest.raises(UserError, match="leads out"):
        file_inside(snapshot, "deep/y", "the list")


@pytest.mark.parametrize(
    "names",
    [
        ("a", "A"),
        ("a/x", "A/y"),
        ("\u00e9", "e\u0301"),
        ("\u00c9/x", "e\u0301/x"),
        ("\u00df", "ss"),
        ("b", "a/x", "a/X"),
    ],
)
def test_names_that_are_one_on_some_systems_are_found(names: tuple[str, ...]) -> None:
    assert colliding(names) is not None and colliding(reversed(names)) is not None


def test_names_that_are_several_everywhere_are_none() -> None:
    assert colliding(["a/x", "a/y", "b/x", "a.x", "\u00e9", "e"]) is None
