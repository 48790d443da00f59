"""Writing a package in a process that is killed: the old package stays, or the new one is whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scale_export.package import leftovers
from scale_export.package.exchange import Exchange, exchange
from scale_export.package.staging import StagedPackage
from tests.helpers.packages import CONTENTS, fill, manifest, names, no_exchange, refusal, tag_of, write

HERE, ELSEWHERE = leftovers._system(), "0badcafe"


def test_only_dead_processes_leftovers_are_removed(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    gone = [f".pkg.partial-{HERE}-{who}-0123abcd" for who in (dead, os.getpid())]
    gone += [f".pkg.partial-{HERE}-{dead}-0123abcd-old", f".pkg.partial-{HERE}-{dead}-0123abce-gone"]
    alive = f".pkg.partial-{HERE}-{os.getppid()}-0123abcd"
    kept = [alive, f".other.partial-{HERE}-{dead}-0123abcd", ".pkg.partial-mine", "pkg2"]
    for name in gone + kept:
        fill(tmp_path / name)
    with StagedPackage(tmp_path / "pkg", force=False) as first:
        fill(first.directory)
        with StagedPackage(tmp_path / "pkg", force=False) as second:
            assert names(tmp_path) == sorted([*kept, *(s.directory.name for s in (first, second))])
        first.commit(manifest())
    assert names(tmp_path) == sorted([*kept, "pkg"])


@pytest.mark.parametrize("suffix", ["", "-old", "-gone"])
def test_another_systems_leftovers_are_removed_by_their_age(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever process has that number here: a container's 1 is not the host's 1."""
    other = tmp_path / f".pkg.partial-{ELSEWHERE}-1-0123abcd{suffix}"
    fill(other)
    write(tmp_path / "pkg")
    assert names(tmp_path) == sorted([other.name, "pkg"])
    monkeypatch.setattr(leftovers, "ABANDONED_SECONDS", -1.0)
    write(tmp_path / "pkg", force=True)
    assert names(tmp_path) == ["pkg"]


def test_a_maker_renews_its_folders_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "HEARTBEAT_SECONDS", 0.01)
    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        os.utime(staged.directory, (0, 0))
        deadline = time.monotonic() + 10
        while staged.directory.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert staged.directory.stat().st_mtime > 0


def test_a_maker_whose_folder_was_taken_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another system that takes it for abandoned leaves the whole of it or nothing, never a part."""
    monkeypatch.setattr(leftovers, "ABANDONED_SECONDS", -1.0)

    def taken() -> None:
        with StagedPackage(tmp_path / "pkg", force=False) as staged:
            fill(staged.directory)
            monkeypatch.setattr(leftovers, "_system", lambda: ELSEWHERE)
            leftovers.remove_abandoned(tmp_path / "pkg", now=staged.directory.stat().st_mtime)
            staged.commit(manifest())

    assert "was removed while" in refusal(taken)
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", ["lose", "alter", "add"])
def test_what_changed_after_it_was_hashed_is_not_published(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = StagedPackage._seal

    def then_change(staged: StagedPackage, *arguments: Any) -> None:
        seal(staged, *arguments)
        file = staged.directory / "vision.onnx"
        {
            "lose": file.unlink,
            "alter": lambda: file.write_bytes(b"other graph."),
            "add": (staged.directory / "more").touch,
        }[change]()

    monkeypatch.setattr(StagedPackage, "_seal", then_change)
    assert re.search("lacks|damaged|does not list", refusal(lambda: write(tmp_path / "pkg")))
    assert names(tmp_path) == []


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
