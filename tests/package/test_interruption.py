"""Writing a package in a process that is killed: the old package stays, or the new one is whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from scale_export.package.exchange import Exchange, exchange
from scale_export.package.staging import StagedPackage
from tests.helpers.packages import CONTENTS, fill, manifest, names, no_exchange, refusal, tag_of, write


def test_only_dead_processes_leftovers_are_removed(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    gone = [f".pkg.partial-{who}-0123abcd" for who in (dead, os.getpid())]
    gone.append(f".pkg.partial-{dead}-0123abcd-old")
    alive, other = f".pkg.partial-{os.getppid()}-0123abcd", f".other.partial-{dead}-0123abcd"
    kept = [alive, other, ".pkg.partial-mine", "pkg2"]
    for name in gone + kept:
        fill(tmp_path / name)
    with StagedPackage(tmp_path / "pkg", force=False) as first:
        fill(first.directory)
        with StagedPackage(tmp_path / "pkg", force=False) as second:
            assert names(tmp_path) == sorted([*kept, *(s.directory.name for s in (first, second))])
        first.commit(manifest())
    assert names(tmp_path) == sorted([*kept, "pkg"])


def run_until_killed(out: Path, step: int, exchange: Exchange) -> bool:
    """Replace ``out`` in a child that kills itself (SIGKILL) at its ``step``-th touch of the file system.

    True if it was killed, False if it had finished before.
    """
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    left = step

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.", "ctypes.")):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        write(out, force=True, tag=b"new", exchange=exchange)
        os._exit(0)
    finally:
        os._exit(3)


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_kill_at_any_step_leaves_the_old_package_the_new_or_none(
    atomic: bool, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill is no power cut
    how = exchange if atomic else no_exchange
    out, seen, step = tmp_path / "pkg", set(), 0
    while True:
        if old:
            write(out, force=True, tag=b"old", exchange=how)
        killed = run_until_killed(out, step, how)
        seen.add(tag_of(out) if out.exists() else None)
        write(out, force=True, tag=b"later", exchange=how)
        assert tag_of(out) == b"later" and names(tmp_path) == ["pkg"], step
        if not killed:
            break
        step += 1
        if not old:
            shutil.rmtree(out)
    assert step > 40
    assert seen == ({b"old", b"new"} if old and atomic else {b"old", b"new", None} if old else {b"new", None})


def test_exchange_is_atomic_here_or_says_that_it_is_not(tmp_path: Path) -> None:
    fill(tmp_path / "a", tag=b"a")
    fill(tmp_path / "b", tag=b"b")
    swapped = exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "vision.onnx").read_bytes() == (b"b" if swapped else b"a")
    if swapped:
        with pytest.raises(FileNotFoundError):
            exchange(tmp_path / "a", tmp_path / "absent")


def test_failed_fallback_puts_the_old_package_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def fail_to_place(path: Path, target: Path) -> Path:
        if ".partial-" in path.name and not path.name.endswith("-old") and target == out:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fail_to_place)
    assert "cannot be written" in refusal(lambda: write(out, force=True, tag=b"new", exchange=no_exchange))
    assert tag_of(out) == CONTENTS["vision.onnx"] and names(out.parent) == ["pkg"]
