"""``OUT.log``: written over a former log, and over nothing else of the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scale_export.cli.fold import LOG_KEYS, check_log, log_path, write_log
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from tests.helpers.cli import run


def test_a_log_is_written_over_a_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = WorkLog(quiet=True)
    for name in ("first", "second"):
        with log.stage(name):
            pass
        write_log(tmp_path / "pkg", log)
    record = json.loads((tmp_path / "pkg.log").read_text(encoding="utf-8"))
    assert record.keys() == set(LOG_KEYS) and record["seconds"].keys() == {"first", "second"}
    monkeypatch.chdir(tmp_path)
    assert log_path(Path("pkg")) == tmp_path / "pkg.log"


@pytest.mark.parametrize("text", ["dear", "{}", "[]", '{"ended": 1}', "[" * 100_000, "\udcff"])
def test_another_file_is_replaced_by_force_alone(text: str, tmp_path: Path) -> None:
    raw = text.encode(errors="surrogateescape")
    (tmp_path / "pkg.log").write_bytes(raw)
    for action in (check_log, lambda *a, **k: write_log(tmp_path / "pkg", WorkLog(quiet=True), **k)):
        with pytest.raises(UserError, match="--force"):
            action(tmp_path / "pkg", force=False)
    assert (tmp_path / "pkg.log").read_bytes() == raw
    write_log(tmp_path / "pkg", WorkLog(quiet=True), force=True)
    check_log(tmp_path / "pkg", force=False)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_a_link_or_a_special_file_is_refused(kind: str, force: bool, tmp_path: Path) -> None:
    place = tmp_path / "pkg.log"
    write_log(tmp_path / "other", WorkLog(quiet=True))
    before = (tmp_path / "other.log").read_bytes()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to("other.log" if kind == "link" else "nowhere")
    with pytest.raises(UserError, match="choose another --out"):
        write_log(tmp_path / "pkg", WorkLog(quiet=True), force=force)
    assert (tmp_path / "other.log").read_bytes() == before and not (tmp_path / "nowhere").exists()


def test_a_fold_asks_before_it_works(coefficient_file: Path, tmp_path: Path) -> None:
    (tmp_path / "pkg.log").write_bytes(b"dear")
    out = str(tmp_path / "pkg")
    assert (
        run("fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--out", out, "--model", "no/such")
        == 2
    )
    assert (tmp_path / "pkg.log").read_bytes() == b"dear"
