"""Writing a package: the same bytes every time, and no half-written place whatever happens."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from scale_export.core.errors import UserError
from scale_export.package.manifest import (
    FAILED_MANIFEST_NAME,
    open_package_files,
)
from scale_export.package.staging import StagedPackage, check_destination, check_space
from tests.helpers.packages import CONTENTS, fill, manifest, names, refusal, tag_of, write
from tests.helpers.trees import tree


def test_two_writes_are_byte_identical(out: Path, tmp_path: Path) -> None:
    with StagedPackage(tmp_path / "second", force=False) as staged:
        fill(staged.directory, contents=dict(reversed(CONTENTS.items())))
        libraries = dict(reversed(manifest().libraries.items()))
        staged.commit(manifest(libraries=libraries))
    assert tree(out) == tree(tmp_path / "second")
    raw = (out / "manifest.json").read_text(encoding="utf-8")
    assert raw == json.dumps(json.loads(raw), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def test_directory_permissions_follow_the_umask(out: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"graphs": {"decoder": "absent.onnx"}}, "absent.onnx"),
        ({"coefficients": "x"}, "'x'"),
        ({"graphs": {}}, "no 'decoder'"),
    ],
)
def test_manifest_that_names_no_staged_file_is_not_committed(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected), StagedPackage(tmp_path / "p", force=False) as staged:
        fill(staged.directory)
        staged.commit(manifest(**change))
    assert not names(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "a\\b", "C:x", "new\nline"])
def test_illegal_staged_name_is_not_committed(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError), StagedPackage(tmp_path / "p", force=False) as staged:
        fill(staged.directory, contents=CONTENTS | {name: b"x"})
        staged.commit(manifest())
    assert not names(tmp_path)


def test_manifest_comes_last_and_all_is_synced_before_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    sync, rename = os.fsync, os.rename

    def record(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        log.append(path.partition(".partial-")[2].partition("/")[2])
        sync(descriptor)

    def move(source: Path, destination: Path) -> None:
        log.append("move")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(os, "rename", move)
    write(tmp_path / "pkg")
    before, after = log[: log.index("move")], log[log.index("move") + 1 :]
    assert before[: len(CONTENTS) + 1] == [*sorted(CONTENTS), "manifest.json"]
    assert set(before[len(CONTENTS) + 1 :]) == {"", "selftest", "selftest/deeper"}
    assert after == [""]


def test_existing_destination_is_refused_without_force(out: Path) -> None:
    before = tree(out)
    assert "--force" in refusal(lambda: write(out))
    assert tree(out) == before and names(out.parent) == ["pkg"]


def test_force_replaces_a_package_and_keeps_it_until_then(out: Path) -> None:
    with StagedPackage(out, force=True) as staged:
        fill(staged.directory, tag=b"new")
        assert tag_of(out) == CONTENTS["vision.onnx"]
        staged.commit(manifest())
    assert tag_of(out) == b"new" and names(out.parent) == ["pkg"]


def test_force_takes_an_empty_directory_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert tag_of(write(tmp_path / "empty", force=True)) == CONTENTS["vision.onnx"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_bytes(b"dear")
    (tmp_path / "file").write_bytes(b"dear")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("home", "file", "link", "pkg.failed"):
        assert "choose another --out" in refusal(lambda name=name: write(tmp_path / name, force=True))
    assert (tmp_path / "home" / "letter").read_bytes() == (tmp_path / "file").read_bytes() == b"dear"


def stranger_manifest(directory: Path) -> None:
    """A browser extension's source: a manifest.json that is none of ours."""
    (directory / "manifest.json").write_text('{"manifest_version": 3, "name": "mine", "version": "1"}')


def added_file(directory: Path) -> None:
    (directory / "selftest" / "letter").write_bytes(b"dear")


def changed_file(directory: Path) -> None:
    (directory / "vision.onnx").write_bytes(b"VISION graph")


def lost_file(directory: Path) -> None:
    (directory / "vision.onnx").unlink()


def link(directory: Path) -> None:
    (directory / "mine").symlink_to("vision.onnx")


STRANGERS = {
    stranger_manifest: "schema",
    added_file: "selftest/letter",
    changed_file: "vision.onnx",
    lost_file: "vision.onnx",
    link: "mine",
}


@pytest.mark.parametrize("change", STRANGERS, ids=lambda change: change.__name__)
def test_force_removes_nothing_that_an_export_did_not_write(
    change: Callable[[Path], None], out: Path
) -> None:
    change(out)
    before = tree(out)
    sentence = refusal(lambda: write(out, force=True))
    assert STRANGERS[change] in sentence and "choose another --out" in sentence
    assert tree(out) == before and names(out.parent) == ["pkg"]


def test_a_file_that_comes_while_an_export_runs_is_kept(out: Path) -> None:
    def meet() -> None:
        with StagedPackage(out, force=True) as staged:
            fill(staged.directory, tag=b"new")
            added_file(out)
            staged.commit(manifest())

    assert "selftest/letter" in refusal(meet)
    assert (out / "selftest" / "letter").read_bytes() == b"dear" and names(out.parent) == ["pkg"]


@pytest.mark.parametrize("change", STRANGERS, ids=lambda change: change.__name__)
def test_a_failing_export_replaces_nothing_but_a_failed_one(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory)
        failed = staged.fail(manifest())
    change(failed)
    before = tree(failed)
    assert "move it away" in refusal(lambda: write(tmp_path / "pkg"))
    assert tree(failed) == before and names(tmp_path) == ["pkg.failed"]


@pytest.mark.parametrize("kind", ["package", "file", "link", "folder"])
def test_another_thing_where_a_failed_export_goes_is_kept(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "pkg.failed"

    def meet() -> None:
        with StagedPackage(tmp_path / "pkg", force=True) as staged:
            fill(staged.directory)
            if kind == "package":
                write(tmp_path / "other").rename(place)
            elif kind == "file":
                place.write_bytes(b"dear")
            elif kind == "link":
                (tmp_path / "empty").mkdir()
                place.symlink_to(tmp_path / "empty")
            else:
                place.mkdir()
                (place / "letter").write_bytes(b"dear")
            staged.fail(manifest())

    assert "move it away" in refusal(meet)
    assert os.path.lexists(place) and ".failed" in refusal(lambda: write(tmp_path / "pkg"))
    if kind in ("package", "folder"):
        assert tree(place) and tree(place).keys() <= {*CONTENTS, "manifest.json", "letter"}


def test_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def meet() -> None:
        with StagedPackage(tmp_path / "pkg", force=False) as staged:
            fill(staged.directory)
            (tmp_path / "pkg").mkdir()
            staged.commit(manifest())

    assert "exists already" in refusal(meet)
    assert names(tmp_path) == ["pkg"] and not names(tmp_path / "pkg")


def test_parents_are_made_and_unmade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), StagedPackage(tmp_path / "a" / "b" / "pkg", force=False) as staged:
        assert staged.directory.is_dir()
        raise KeyError
    assert not names(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert write(Path("a/b/pkg")) == tmp_path / "a" / "b" / "pkg"
    assert names(tmp_path / "a" / "b") == ["pkg"]


def test_parent_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "not a directory that you can write to" in refusal(lambda: write(tmp_path / "file" / "pkg"))
    assert "cannot be written" in refusal(lambda: write(tmp_path / ("x" * 300)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert "not a directory that you can write to" in refusal(
            lambda: check_destination(tmp_path / "pkg", force=False)
        )
    assert names(tmp_path) == ["file"]


def test_leaving_without_commit_removes_everything(tmp_path: Path) -> None:
    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory)
        assert staged.directory.parent == tmp_path and staged.directory.name.startswith(".pkg.partial-")
    assert not names(tmp_path)
    with pytest.raises(KeyboardInterrupt), StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory)
        raise KeyboardInterrupt
    assert not names(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_sentence_and_leaves_nothing(error: Exception, out: Path) -> None:
    def run_out_of_space() -> None:
        with StagedPackage(out, force=True, needed_bytes=5000) as staged:
            fill(staged.directory, contents={"decoder.onnx": b"x" * 1234})
            raise error

    assert "no space left" in (sentence := refusal(run_out_of_space))
    assert "1,234 bytes of the 5,000 needed" in sentence and str(out) in sentence
    assert tag_of(out) == CONTENTS["vision.onnx"] and names(out.parent) == ["pkg"]


@pytest.mark.parametrize("function", ["write_bytes", "rename"])
def test_full_disk_during_commit_leaves_nothing(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_on_a_full_disk() -> None:
        with StagedPackage(tmp_path / "pkg", force=False) as staged, monkeypatch.context() as patch:
            fill(staged.directory)

            def full(path: Path, *_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

            patch.setattr(Path, function, full)
            staged.commit(manifest())

    assert "no space left" in refusal(commit_on_a_full_disk)
    assert not names(tmp_path)


def test_other_writing_error_is_told_and_foreign_errors_pass(tmp_path: Path) -> None:
    def lose_permission() -> None:
        with StagedPackage(tmp_path / "pkg", force=False) as staged:
            raise PermissionError(errno.EACCES, "Permission denied", str(staged.directory / "decoder.onnx"))

    assert "cannot be written" in refusal(lose_permission)
    with pytest.raises(FileNotFoundError), StagedPackage(tmp_path / "pkg", force=False):
        (tmp_path / "pkg-base-model").read_bytes()
    told = "already a sentence: No space left on device"
    with pytest.raises(UserError, match=f"^{told}$"), StagedPackage(tmp_path / "p", force=False):
        raise UserError(told)
    assert not names(tmp_path)


def test_staged_link_is_refused_and_removed(tmp_path: Path) -> None:
    def stage_link() -> None:
        with StagedPackage(tmp_path / "pkg", force=False) as staged:
            fill(staged.directory)
            (staged.directory / "link").symlink_to("vision.onnx")
            staged.commit(manifest())

    assert "link" in refusal(stage_link)
    assert not names(tmp_path)


def test_space_is_asked_before_anything_is_written(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there"
    check_space(place, 1)
    assert "no space for" in refusal(lambda: check_space(place, 1 << 60))

    def stage() -> None:
        with StagedPackage(place, force=False, needed_bytes=1 << 60):
            raise AssertionError

    assert "1,152,921,504,606,846,976 bytes" in refusal(stage)
    assert not names(tmp_path)


def test_failed_package_is_kept_apart_under_another_manifest(out: Path) -> None:
    for attempt in (b"first", b"second"):
        with StagedPackage(out, force=True) as staged:
            fill(staged.directory, tag=attempt)
            failed = staged.fail(manifest())
    assert failed == out.parent / "pkg.failed"
    kept = tree(failed)
    assert kept.pop(FAILED_MANIFEST_NAME)
    assert kept == CONTENTS | {"vision.onnx": b"second"}
    assert names(out.parent) == ["pkg", "pkg.failed"]
    assert tag_of(out) == CONTENTS["vision.onnx"]
    assert "not a finished package" in refusal(lambda: open_package_files(failed))
    assert open_package_files(failed, failed=True).manifest.files.keys() == kept.keys()
    (failed / "vision.onnx").write_bytes(b"thirds")
    assert "vision.onnx" in refusal(lambda: open_package_files(failed, failed=True))


def test_failing_after_a_commit_that_could_not_rename_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(source: Path, destination: Path) -> None:
        raise OSError("busy")

    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="busy"):
            patch.setattr(os, "rename", busy)
            staged.commit(manifest())
        failed = staged.fail(manifest())
    assert tree(failed).keys() == CONTENTS.keys() | {FAILED_MANIFEST_NAME}
