"""Opening a package: any damage, and any manifest that is wrong, is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from scale_export.package import manifest as package
from scale_export.package.manifest import (
    open_package_files,
)
from scale_export.package.staging import StagedPackage
from tests.helpers.packages import CONTENTS, fill, in_hub_cache, manifest, names, refusal, reseal, write


def test_written_package_opens(out: Path) -> None:
    files = open_package_files(out)
    assert {name: files.path(name).read_bytes() for name in files.manifest.files} == CONTENTS
    assert files.manifest.model_copy(update={"files": {}}) == manifest()
    entry = files.manifest.files["vision.onnx"]
    assert entry.sha256 == hashlib.sha256(CONTENTS["vision.onnx"]).hexdigest()
    assert names(out.parent) == ["pkg"]
    assert "did you mean 'vision.onnx'" in refusal(lambda: files.path("vison.onnx"))


def test_manifest_refuses_unknown_fields_and_values() -> None:
    wrong = ({"extra": 1}, {"scope": "first"}, {"precision": "int2"}, {"block_size": 0}, {"graphs": {"x": 1}})
    for change in wrong:
        with pytest.raises(ValidationError):
            manifest(**change)


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
        (lambda t: t.update(schema=1), "schema 2"),
        (lambda t: t.pop("schema"), "schema 2"),
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
    assert "is a link" in refusal(lambda: open_package_files(out))
    (out / "moved").rename(out / "manifest.json")
    reseal(out, lambda table: table["extras"].update(long="x" * 5_000_000))
    assert "4,194,304 at most" in refusal(lambda: open_package_files(out))


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
    assert "not a finished package" in refusal(lambda: open_package_files(tmp_path / "empty"))


def test_unreadable_package_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *_: object, **__: object) -> Iterator[tuple[str, int]]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(package, "scan_files", broken)
    assert "cannot be read" in refusal(lambda: open_package_files(out))


def test_opening_needs_neither_torch_nor_a_runtime() -> None:
    code = "import sys, scale_export.package.manifest; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = child.stdout.split()
    assert "scale_export.package.manifest" in loaded
    assert not {"torch", "onnxruntime", "onnx", "transformers"} & set(loaded)


@pytest.mark.parametrize("names", [("x", "X"), ("d/x", "D/y"), ("\u00e9", "e\u0301"), ("Manifest.json", "x")])
def test_names_that_collide_on_some_systems_are_refused(names: tuple[str, str], out: Path) -> None:
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"")
    reseal(out, lambda table: table["files"].update(dict.fromkeys(names, entry)))
    assert "one name on some systems" in refusal(lambda: open_package_files(out))


BESIDE = [
    ".gitattributes",
    "README.md",
    ".cache/huggingface/download/x.lock",
    ".DS_Store",
    "selftest/.DS_Store",
]


def test_a_snapshot_of_the_hubs_cache_opens(out: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(out, tmp_path / "hub")
    for name in BESIDE:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"x")
    files = open_package_files(snapshot)
    assert {name: files.path(name).read_bytes() for name in files.manifest.files} == CONTENTS
    assert "README.md" in refusal(lambda: files.path("README.md"))
    with_link = tmp_path / "link"
    with_link.symlink_to(snapshot)
    open_package_files(with_link)
    assert "is a link" in refusal(lambda: open_package_files(snapshot, exact=True))
    assert "choose another --out" in refusal(lambda: write(snapshot, force=True))


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_a_package_is_passed_over_and_kept(name: str, out: Path) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(b"x")
    open_package_files(out)
    assert name in refusal(lambda: open_package_files(out, exact=True))
    assert name in refusal(lambda: write(out, force=True)) and (out / name).read_bytes() == b"x"


@pytest.mark.parametrize(
    "name",
    ["readme.md", "selftest/README.md", ".cache/x", ".cache/huggingface.txt", "x.DS_Store", ".gitignore"],
)
def test_other_strangers_are_refused(name: str, out: Path) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(b"x")
    assert name in refusal(lambda: open_package_files(out))


@pytest.mark.parametrize("name", ["vision.onnx", "manifest.json", "selftest/case0.npz"])
def test_a_link_of_a_snapshot_that_leads_elsewhere_is_refused(name: str, out: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(out, tmp_path / "hub")
    other = in_hub_cache(out, tmp_path / "other")
    for target in (
        out / name,
        other / name,
        tmp_path / "hub" / "models--user--pkg" / "blobs",
        "nowhere",
        name,
    ):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(target)
        assert name in (said := refusal(lambda: open_package_files(snapshot)))
        assert "is a link" in said or "regular file" in said


def test_a_changed_blob_is_refused(out: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(out, tmp_path / "hub")
    (snapshot / "vision.onnx").resolve().write_bytes(b"VISION graph")
    assert "damaged" in refusal(lambda: open_package_files(snapshot))


def test_a_listed_file_of_a_strangers_name_is_checked(tmp_path: Path) -> None:
    with StagedPackage(tmp_path / "pkg", force=False) as staged:
        fill(staged.directory, contents=CONTENTS | {"README.md": b"ours"})
        out = staged.commit(manifest())
    (out / "README.md").write_bytes(b"OURS")
    assert "README.md" in refusal(lambda: open_package_files(out))
    (out / "README.md").unlink()
    assert "README.md" in refusal(lambda: open_package_files(out))
