"""Packages: the same bytes every time, any damage refused, and no half-written place whatever happens."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from scale_export.core.errors import UserError
from scale_export.package import manifest as package
from scale_export.package import staging
from scale_export.package.manifest import (
    FAILED_MANIFEST_NAME,
    DecoderFacts,
    Manifest,
    Tool,
    open_package_files,
)
from scale_export.package.staging import StagedPackage, check_destination, check_space

CONTENTS = {
    "decoder.onnx": b"graph" * 50,
    "decoder.onnx.data": bytes(range(256)) * 8,
    "vision.onnx": b"vision graph",
    "embedding.onnx": b"embedding graph",
    "scale.safetensors": b"\0\1\2",
    "selftest/case0.npz": b"golden",
    "selftest/deeper/empty": b"",
}


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "tool": Tool(name="scale-export", version="0.1.0"),
        "libraries": {"onnx": "1.23.2", "numpy": "2.3.5"},
        "name": "tiny",
        "base_model": "examples/tiny_vlm",
        "model_type": "llava",
        "target": "cpu",
        "backend": "onnxruntime",
        "execution_providers": ("CPUExecutionProvider",),
        "scope": "last",
        "fold": "gate",
        "precision": "int8",
        "block_size": 32,
        "context_length": 4096,
        "graphs": {"decoder": "decoder.onnx", "vision": "vision.onnx", "embedding": "embedding.onnx"},
        "decoder": DecoderFacts(
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            hidden_size=128,
            vocab_size=96,
            activation_dtype="float32",
            kv_dtype="float32",
        ),
        "coefficients": "scale.safetensors",
        "image_token_id": 3,
        "extras": {"grid": [3, 3], "word": "é"},
    }
    return Manifest(**(fields | changes))


def fill(directory: Path, *, tag: bytes = b"", contents: dict[str, bytes] = CONTENTS) -> None:
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if tag:
        (directory / "vision.onnx").write_bytes(tag)


def write(out: Path, *, force: bool = False, tag: bytes = b"") -> Path:
    with StagedPackage(out, force=force) as staged:
        fill(staged.directory, tag=tag)
        return staged.commit(manifest())


def tag_of(out: Path) -> bytes:
    return open_package_files(out).path("vision.onnx").read_bytes()


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write(tmp_path / "pkg")


def reseal(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Forge a manifest whose own hash is right, to reach the checks behind it."""
    table = json.loads((out / "manifest.json").read_bytes())
    del table["manifest_sha256"]
    change(table)
    plain = json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    table["manifest_sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    text = json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


# Writing and opening


def test_written_package_opens(out: Path) -> None:
    files = open_package_files(out)
    assert {name: files.path(name).read_bytes() for name in files.manifest.files} == CONTENTS
    assert files.manifest.model_copy(update={"files": {}}) == manifest()
    entry = files.manifest.files["vision.onnx"]
    assert entry.sha256 == hashlib.sha256(CONTENTS["vision.onnx"]).hexdigest()
    assert names(out.parent) == ["pkg"]
    assert "did you mean 'vision.onnx'" in refusal(lambda: files.path("vison.onnx"))


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


def test_manifest_refuses_unknown_fields_and_values() -> None:
    wrong = ({"extra": 1}, {"scope": "first"}, {"precision": "int2"}, {"block_size": 0}, {"graphs": {"x": 1}})
    for change in wrong:
        with pytest.raises(ValidationError):
            manifest(**change)


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
    sync, place = os.fsync, StagedPackage._place

    def record(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        log.append(path.partition(".partial-")[2].partition("/")[2])
        sync(descriptor)

    def move(staged: StagedPackage, destination: Path, *, replace: bool) -> Path:
        log.append("move")
        return place(staged, destination, replace=replace)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(StagedPackage, "_place", move)
    write(tmp_path / "pkg")
    before, after = log[: log.index("move")], log[log.index("move") + 1 :]
    assert before[: len(CONTENTS) + 1] == [*sorted(CONTENTS), "manifest.json"]
    assert set(before[len(CONTENTS) + 1 :]) == {"", "selftest", "selftest/deeper"}
    assert after == [""]


# Damage


@pytest.mark.parametrize("name", [*(n for n in CONTENTS if CONTENTS[n]), "manifest.json"])
def test_changed_byte_is_refused(name: str, out: Path) -> None:
    raw = (out / name).read_bytes()
    step = max(1, len(raw) // 40)
    for position in {*range(0, len(raw), step), len(raw) - 1}:
        for bit in (1, 0x20, 0x80):
            changed = bytearray(raw)
            changed[position] ^= bit
            (out / name).write_bytes(changed)
            assert name in refusal(lambda: open_package_files(out)), (position, bit)
    (out / name).write_bytes(raw)
    open_package_files(out)


@pytest.mark.parametrize("name", [*CONTENTS, "manifest.json"])
def test_missing_or_resized_file_is_refused(name: str, out: Path) -> None:
    raw = (out / name).read_bytes()
    sizes = [raw + b" ", b""] + [raw[:cut] for cut in (1, len(raw) // 2, len(raw) - 1) if cut > 0]
    for changed in (c for c in sizes if c != raw):
        (out / name).write_bytes(changed)
        assert name in refusal(lambda: open_package_files(out))
    (out / name).unlink()
    assert name in refusal(lambda: open_package_files(out))


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "selftest/more", "new/file", "manifest.json.bak"])
def test_extra_file_is_refused(name: str, out: Path) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"")
    assert name in refusal(lambda: open_package_files(out))


@pytest.mark.parametrize("name", ["decoder.onnx", "selftest/case0.npz", "manifest.json"])
def test_link_in_place_of_a_file_is_refused(name: str, out: Path) -> None:
    (out / name).rename(out.parent / "moved")
    (out / name).symlink_to(out.parent / "moved")
    sentence = refusal(lambda: open_package_files(out))
    assert name in sentence


def test_links_to_and_for_directories_are_refused(out: Path) -> None:
    (out / "selftest").rename(out.parent / "moved")
    (out / "selftest").symlink_to(out.parent / "moved")
    assert "selftest" in refusal(lambda: open_package_files(out))
    (out / "selftest").unlink()
    (out / "selftest").symlink_to("nowhere")
    assert "selftest" in refusal(lambda: open_package_files(out))


def test_special_file_is_refused(out: Path) -> None:
    (out / "vision.onnx").unlink()
    os.mkfifo(out / "vision.onnx")
    assert "vision.onnx" in refusal(lambda: open_package_files(out))
    (out / "manifest.json").unlink()
    os.mkfifo(out / "manifest.json")
    assert "manifest.json" in refusal(lambda: open_package_files(out))


def test_directory_in_place_of_a_file_is_refused(out: Path) -> None:
    (out / "vision.onnx").unlink()
    (out / "vision.onnx").mkdir()
    assert "vision.onnx" in refusal(lambda: open_package_files(out))


OUTSIDE = ["../x", "/etc/hostname", "a/../../x", "./x", "a//x", "", "a/", ".."]


@pytest.mark.parametrize("name", [*OUTSIDE, "a\\x", "..\\x", "C:x", "C:/x", "a\0", "a\n"])
def test_name_that_leads_outside_is_refused(name: str, out: Path) -> None:
    (out.parent / "x").write_bytes(b"")
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    reseal(out, lambda table: table["files"].update({name: entry}))
    assert "is not the path of another file inside the package" in refusal(lambda: open_package_files(out))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.update(schema=2), "schema 1"),
        (lambda t: t.pop("schema"), "schema 1"),
        (lambda t: t.pop("scope"), "scope"),
        (lambda t: t.update(novel=1), "novel"),
        (lambda t: t.update(precision="int2"), "precision"),
        (lambda t: t.update(context_length="4096"), "context_length"),
        (lambda t: t.update(context_length=True), "context_length"),
        (lambda t: t["graphs"].update(decoder="absent.onnx"), "absent.onnx"),
        (lambda t: t["graphs"].update(decoder="../x"), "../x"),
        (lambda t: t["graphs"].pop("decoder"), "decoder"),
        (lambda t: t.update(coefficients="/etc/hostname"), "/etc/hostname"),
        (lambda t: t.update(files={}), "decoder.onnx"),
        (lambda t: t["files"].update({"manifest.json": {"sha256": "0" * 64, "size": 1}}), "manifest.json"),
        (lambda t: t["files"]["vision.onnx"].update(size=-1), "size"),
        (lambda t: t["files"]["vision.onnx"].update(sha256="0" * 63), "sha256"),
        (lambda t: t["files"]["vision.onnx"].update(sha256="0" * 64), "vision.onnx"),
        (lambda t: t["files"].update(absent={"sha256": "0" * 64, "size": 1}), "absent"),
    ],
)
def test_wrong_manifest_is_refused(change: Callable[[Any], object], expected: str, out: Path) -> None:
    reseal(out, change)
    assert expected in refusal(lambda: open_package_files(out))


def test_forging_helper_itself_is_accepted(out: Path) -> None:
    reseal(out, lambda table: table.update(name="other"))
    assert open_package_files(out).manifest.name == "other"


NO_MANIFESTS = [b"", b"[]", b"null", b"1", b"{", b"\xff", b"{} {}", b'{"schema": NaN}', b'"\\ud800"']


@pytest.mark.parametrize("raw", [*NO_MANIFESTS, b"[" * 100_000], ids=range(10))
def test_manifest_that_is_no_manifest_is_refused(raw: bytes, out: Path) -> None:
    (out / "manifest.json").write_bytes(raw)
    assert "manifest.json" in refusal(lambda: open_package_files(out))


def test_outsized_or_linked_manifest_is_refused_before_it_is_read(out: Path) -> None:
    (out / "manifest.json").rename(out / "moved")
    (out / "manifest.json").symlink_to("moved")
    assert "not a regular file of at most" in refusal(lambda: open_package_files(out))
    (out / "moved").rename(out / "manifest.json")
    reseal(out, lambda table: table["extras"].update(long="x" * 5_000_000))
    assert "not a regular file of at most" in refusal(lambda: open_package_files(out))


def test_reformatted_manifest_and_repeated_key_are_refused(out: Path) -> None:
    raw = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(json.dumps(json.loads(raw)).encode())
    assert "changed after it was written" in refusal(lambda: open_package_files(out))
    (out / "manifest.json").write_bytes(raw.replace(b'  "schema"', b'  "schema": 1,\n  "schema"'))
    assert "a key stands twice" in refusal(lambda: open_package_files(out))


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refusal(lambda: open_package_files(tmp_path / "absent"))
    assert "is not a directory" in refusal(lambda: open_package_files(tmp_path / "file"))
    assert "no finished package" in refusal(lambda: open_package_files(tmp_path / "empty"))


def test_unreadable_package_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> Iterator[tuple[str, int]]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(package, "scan_files", broken)
    assert "cannot be read" in refusal(lambda: open_package_files(out))


# The destination


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
    assert "no writable directory" in refusal(lambda: write(tmp_path / "file" / "pkg"))
    assert "cannot be written" in refusal(lambda: write(tmp_path / ("x" * 300)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert "no writable directory" in refusal(lambda: check_destination(tmp_path / "pkg", force=False))
    assert names(tmp_path) == ["file"]


# Failures while writing


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
    assert "no finished package" in refusal(lambda: open_package_files(failed))
    assert open_package_files(failed, failed=True).manifest.files.keys() == kept.keys()
    (failed / "vision.onnx").write_bytes(b"thirds")
    assert "vision.onnx" in refusal(lambda: open_package_files(failed, failed=True))


def test_failing_after_a_commit_that_could_not_rename_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="busy"):
            patch.setattr(StagedPackage, "_place", lambda *_, **__: (_ for _ in ()).throw(OSError("busy")))
            staged.commit(manifest())
        failed = staged.fail(manifest())
    assert tree(failed).keys() == CONTENTS.keys() | {FAILED_MANIFEST_NAME}


# Interrupted runs


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


def run_until_killed(out: Path, step: int) -> bool:
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
        write(out, force=True, tag=b"new")
        os._exit(0)
    finally:
        os._exit(3)


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_kill_at_any_step_leaves_the_old_package_the_new_or_none(
    atomic: bool, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill is no power cut
    if not atomic:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    out, seen, step = tmp_path / "pkg", set(), 0
    while True:
        if old:
            write(out, force=True, tag=b"old")
        killed = run_until_killed(out, step)
        seen.add(tag_of(out) if out.exists() else None)
        write(out, force=True, tag=b"later")
        assert tag_of(out) == b"later" and names(tmp_path) == ["pkg"], step
        if not killed:
            break
        step += 1
        if not old:
            staging._remove(out)
    assert step > 40
    assert seen == ({b"old", b"new"} if old and atomic else {b"old", b"new", None} if old else {b"new", None})


def test_exchange_is_atomic_here_or_says_that_it_is_not(tmp_path: Path) -> None:
    fill(tmp_path / "a", tag=b"a")
    fill(tmp_path / "b", tag=b"b")
    swapped = staging._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "vision.onnx").read_bytes() == (b"b" if swapped else b"a")
    if swapped:
        with pytest.raises(FileNotFoundError):
            staging._exchange(tmp_path / "a", tmp_path / "absent")


def test_failed_fallback_puts_the_old_package_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    real = Path.rename

    def fail_to_place(path: Path, target: Path) -> Path:
        if ".partial-" in path.name and not path.name.endswith("-old") and target == out:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", fail_to_place)
    assert "cannot be written" in refusal(lambda: write(out, force=True, tag=b"new"))
    assert tag_of(out) == CONTENTS["vision.onnx"] and names(out.parent) == ["pkg"]


def test_opening_needs_neither_torch_nor_a_runtime() -> None:
    code = "import sys, scale_export.package.manifest; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = child.stdout.split()
    assert "scale_export.package.manifest" in loaded
    assert not {"torch", "onnxruntime", "onnx", "transformers"} & set(loaded)
