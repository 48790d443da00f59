"""An export over an old package, watched at every touch of the file system, and one for which there is no room.

A process that is killed leaves what lies on the disk at that moment: at each moment the package in its place is the old
one or the new one, whole.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import UserError
from scale_export.package.manifest import open_package_files
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.packages import names

TARGETS = {"cpu": "float32", "iphone": "int8", "coreai": "float32", "checkpoint": "stored"}
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.", "ctypes.", "os.link", "os.truncate")
_watchers: list[Callable[[], None]] = []


def _hook(event: str, _: object) -> None:
    if _watchers and event.startswith(CHANGING):
        watcher = _watchers.pop()  # what it does is not watched itself
        watcher()
        _watchers.append(watcher)


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` before every change of the file system that Python makes."""
    if _hook not in _installed:
        sys.addaudithook(_hook)  # for good: Python has no way to take one away
        _installed.append(_hook)
    _watchers.append(look)
    try:
        yield
    finally:
        _watchers.clear()


_installed: list[Callable[[str, Any], None]] = []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes, as under ``ulimit -f``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", TARGETS)
def test_at_every_moment_the_package_is_the_old_one_or_the_new_one(target: str, base_of: Any, tmp_path: Path):
    base, out = base_of("llava", "llama"), tmp_path / "place" / "package"
    scope: Any = "all" if target == "checkpoint" else "last"

    def fold(seed: int) -> None:
        drawn = random_coefficients(base, scope)
        (tmp_path / str(seed)).mkdir()
        coefficients = saved(
            replace(drawn, mlp_scale=drawn.mlp_scale * np.float32(1 / seed)), tmp_path / str(seed)
        )
        asked = {"precision": TARGETS[target], "evaluation": "none", "force": True}
        outcome = fold_on(base, coefficients, target, out=out, **asked)
        assert outcome.passed, outcome.parity

    fold(1)
    seals = [open_package_files(out).manifest.files]
    looked = []

    def look() -> None:
        looked.append(open_package_files(out).manifest.files)

    with watched(look):
        fold(2)
    seals.append(open_package_files(out).manifest.files)
    assert seals[0] != seals[1]
    assert len(looked) > 10
    assert looked[0] == seals[0]
    assert all(found in seals for found in looked)
    assert names(out.parent) == ["package"]

    if target == "coreai":
        return  # LLVM, which writes its assets, ends the process where it can't write
    with files_of_at_most(10_000), pytest.raises(UserError) as refused:
        fold(3)
    assert "\n" not in str(refused.value)
    assert open_package_files(out).manifest.files == seals[1]
    assert names(out.parent) == ["package"]
