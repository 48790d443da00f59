"""What ends a command that is no user's mistake in words: the exit code, one sentence, and where the trace lies."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from scale_export.cli import app as command_line
from scale_export.cli.faults import MACHINE
from scale_export.core.errors import EXIT_OWN_FAULT, EXIT_USER_ERROR
from tests.helpers.cli import last_json, run

COMMAND = [sys.executable, "-m", "scale_export"]
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


def plant(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every command end with ``error``."""

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("typer.core.TyperGroup.invoke", broken)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where traces go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


OURS = [
    RuntimeError("planted"),
    AssertionError("planted"),
    KeyError("planted"),
    EOFError("planted"),
    FileNotFoundError(errno.ENOENT, "planted", "weights"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "planted"),
]


@pytest.mark.parametrize("error", OURS, ids=[type(error).__name__ for error in OURS])
def test_a_fault_of_ours_ends_with_70_and_names_its_trace(
    error: Exception, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, error)
    assert run("targets", "--json") == EXIT_OWN_FAULT
    found = capsys.readouterr()
    said = [line for line in found.err.splitlines() if line]
    fault = f"fault of scale-export, not yours ({type(error).__name__})"
    assert len(said) == 1 and fault in said[0] and "Traceback" not in said[0]
    assert json.loads(found.out)["error"] == said[0].removeprefix("scale-export: ")
    (trace,) = traces.iterdir()
    assert str(trace) in said[0]
    text = trace.read_text(encoding="utf-8")
    assert "Traceback" in text and "planted" in text and "scale-export targets --json" in text


def test_a_trace_that_no_file_can_take_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    plant(monkeypatch, RuntimeError("planted"))
    assert run("targets") == EXIT_OWN_FAULT
    said = capsys.readouterr().err
    assert "RuntimeError: planted" in said and "report it with the lines above" in said


@pytest.mark.parametrize("number", [number for number in MACHINE if number != errno.EPIPE])
def test_what_the_system_refuses_is_no_fault_of_ours(
    number: int, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, OSError(number, os.strerror(number), "out/model.onnx"))
    assert run("targets") == EXIT_USER_ERROR
    assert re.search(r"out/model\.onnx cannot be used \(.*\): .* again", capsys.readouterr().err)
    assert not list(traces.iterdir())


def test_an_interruption_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plant(monkeypatch, KeyboardInterrupt())
    assert run("targets") == command_line.EXIT_INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


@needs_dev_full
@pytest.mark.parametrize("words", [["targets"], ["targets", "--json"], ["--version"]])
def test_a_full_disk_under_standard_output_is_a_sentence(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR
    assert "the output cannot be used" in done.stderr and "make room" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_reader_that_went_away_is_a_sentence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "targets"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == EXIT_USER_ERROR
    assert "the output cannot be used" in done.stderr and "Traceback" not in done.stderr


def test_a_heat_map_under_a_file_is_refused(
    coefficient_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here already")
    assert run("inspect", str(coefficient_file), "--png", str(tmp_path / "file/x.png"), "--json") == 2
    assert "cannot be written to" in last_json(capsys)["error"]


def test_a_chat_whose_input_is_not_utf_8_ends_with_a_sentence(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"where \xff ?\n"), encoding="utf-8"))
    assert run("run", str(package), "--chat") == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_question_that_is_not_utf_8_is_refused(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = os.fsdecode(b"where is it \xff ?")
    assert run("run", str(package), "--prompt", words) == 2
    assert "not UTF-8 from character 13 on" in capsys.readouterr().err
