"""An export over an old package, watched at every touch of the file system, and one for which there is no room.

A process that is killed leaves what lies on the disk at that moment: at each moment the package in its place is the old
one or the new one, whole.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from scale_export import UserError
from scale_export.package.manifest import open_package_files
from tests.helpers.packages import CONTENTS, fill, manifest, names
from tests.pipeline import kills

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


@pytest.mark.parametrize("target", kills.BACKENDS)
def test_at_every_moment_the_package_is_the_old_one_or_the_new_one(target: str, base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    out, looked = tmp_path / target / "place" / "package", list[str]()

    def look() -> None:
        looked.append(open_package_files(out).manifest.model_dump_json())

    one = kills.ordeal(target, tmp_path, base, during=lambda: watched(look))
    assert one.found() == "new"
    new = open_package_files(out).manifest.model_dump_json()
    one.begin()
    old = open_package_files(out).manifest.model_dump_json()
    assert old != new
    assert len(looked) > 10
    assert looked[0] == old
    assert set(looked) <= {old, new}
    killed_and_filled(one, Random(target))

    if target == "coreai":
        return  # LLVM, which writes its assets, ends the process where it can't write
    one.begin()
    with files_of_at_most(10_000), pytest.raises(UserError) as refused:
        one.pair.fold(out)
    assert "\n" not in str(refused.value)
    assert one.found() == "old"
    assert names(out.parent) == ["package"]


def killed_and_filled(one: kills.Ordeal, rng: Random) -> None:
    """Commits that are killed at steps and moments that are drawn, and at their last step; and on full disks."""
    steps, seconds = kills.timed(one)
    assert steps > 50
    found = [one.killed(rng, steps, seconds) for _ in range(20)]
    found.append(next(filter(None, (killed_near_the_end(one, steps - back) for back in range(1, 20)))))
    assert {"old", "new"} <= set(found) <= {"old", "new", "late"}
    assert {one.filled(rng.randrange(kills.largest(one.pair.new))) for _ in range(4)} == {"old"}


def killed_near_the_end(one: kills.Ordeal, step: int) -> str | None:
    """What a kill at that step leaves; None where the commit had fewer steps this time."""
    one.begin()
    code = kills.in_child(lambda: one.pair.new.publish(one.out), kills.killed_at_step(step))
    return one.found() if code < 0 else None


def test_a_mixture_is_told(tmp_path: Path):
    """What the kills look for is found where it is there."""
    made = []
    for tag in (b"old", b"new"):
        tree = tmp_path / tag.decode()
        fill(tree, tag=tag, contents=CONTENTS | {"scale.safetensors": tag})
        made.append(kills.Made(tree=tree, manifest=manifest()))
    (tmp_path / "place").mkdir()
    one = kills.Ordeal(
        pair=kills.Pair(old=made[0], new=made[1], fold=lambda out: None), out=tmp_path / "place" / "package"
    )
    one.begin()
    assert one.found() == "old"
    (one.out / "scale.safetensors").write_bytes(b"new")
    with pytest.raises(UserError, match=r"scale.safetensors is damaged"):
        one.found()
