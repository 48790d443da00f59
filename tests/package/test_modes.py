"""What we write may be read by whom the umask says: every writer, every file, every folder."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scale_export.cli.fold import write_log
from scale_export.coefficients.file import load_coefficients
from scale_export.core.progress import WorkLog
from scale_export.package.staging import StagedPackage
from scale_export.quantize.stored import write_whole
from tests.helpers.packages import fill, manifest

MASKS = (0o022, 0o077, 0o002, 0o027)


@pytest.fixture(params=MASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def assert_as(umask: int, place: Path) -> None:
    """Every file and folder below, and the place itself."""
    for path in (place, *place.rglob("*")):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def as_libraries_do(folder: Path) -> None:
    """Files and folders of their owner alone, or with the modes of what was copied."""
    fill(folder)
    save_file({"x": np.ones(3, np.float32)}, folder / "private.safetensors")
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(b"private")
    private = Path(tempfile.mkdtemp(dir=folder))
    (private / "x").write_bytes(b"")
    (private / "x").chmod(0o700)
    shutil.copytree(private, folder / "copied")


@pytest.mark.parametrize("finish", [StagedPackage.commit, StagedPackage.fail], ids=["commit", "fail"])
def test_all_of_a_package(finish: Callable[..., Path], umask: int, tmp_path: Path) -> None:
    with StagedPackage(tmp_path / "deep" / "pkg", force=False) as staged:
        as_libraries_do(staged.directory)
        assert stat.S_IMODE((staged.directory / "copied").stat().st_mode) == 0o700
        assert_as(umask, finish(staged, manifest()))
    assert_as(umask, tmp_path / "deep")


def test_what_lies_beside_packages(umask: int, coefficient_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    write_log(place / "pkg", WorkLog(quiet=True))
    write_whole({"x": np.ones(3, np.float32)}, place / "layers.0.safetensors")
    for suffix in ("pt", "safetensors"):
        load_coefficients(coefficient_file).save(place / f"x.{suffix}")
    assert len(list(place.iterdir())) >= 4
    assert_as(umask, place)


def test_a_folded_package(package: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert (package / "selftest" / "expected.safetensors").is_file()
    assert_as(mask, package)
