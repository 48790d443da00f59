"""Ctrl-C at any moment: one sentence, exit code 130, no trace, nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export.cli import app
from scale_export.cli.interruption import noted
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from tests.cli.interruptions import Stage
from tests.helpers.cli import run
from tests.helpers.packages import names, write

SAID = "scale-export: interrupted; nothing is left half-written"
PLANTED = {
    "the import of the commands": "sys.meta_path.insert(0, Finder('scale_export.cli.app'))",
    "the import of a library": "sys.meta_path.insert(0, Finder('rich.progress'))",
    "code made of text": (
        "sys.meta_path.insert(0, Finder('scale_export.core.options', 'exec(\"interrupt()\", globals())'))"
    ),
}
FINDER = """
import signal, sys
def interrupt():
    signal.raise_signal(signal.SIGINT)
class Finder:
    def __init__(self, name, code="interrupt()"):
        self.name, self.code = name, code
    def find_spec(self, name, *_):
        if name == self.name:
            sys.meta_path.remove(self)
            exec(self.code, globals())
"""


@pytest.mark.parametrize("moment", PLANTED)
def test_an_interruption_while_modules_are_imported_is_a_sentence(moment: str) -> None:
    code = f"{FINDER}\n{PLANTED[moment]}\nsys.argv = ['scale-export', 'targets']\n"
    code += "from scale_export.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, SAID, "")


STAGE = 3
"""Of a fold, that begins with files staged already."""


def interrupt(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGINT)


class Careless:
    """Its end is a callback, whose exceptions Python prints and forgets."""

    def __del__(self) -> None:
        interrupt()


def forgotten(*_: Any, **__: Any) -> None:
    Careless()
    time.sleep(10)
    raise AssertionError("the interruption was lost")


def renamed(*_: Any, **__: Any) -> None:
    """As a library does that takes what a callback raises for a fault of its own."""
    try:
        interrupt()
    except KeyboardInterrupt:
        raise RuntimeError("callback failed") from None


@pytest.mark.parametrize("how", [interrupt, forgotten, renamed], ids=lambda how: how.__name__)
def test_whatever_a_library_makes_of_it_it_is_an_interruption(
    how: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    monkeypatch.setattr("typer.core.TyperGroup.invoke", how)
    assert run("targets") == 130
    assert capsys.readouterr().err.strip() == SAID
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_a_program_that_handles_interruptions_keeps_its_way() -> None:
    def mine(*_: Any) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGINT, mine)
    try:
        with noted():
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_amid_an_export_leaves_nothing(
    base_of: Any,
    coefficient_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage, seen = WorkLog.stage, list[str]()

    def counted(log: WorkLog, name: str) -> Any:
        seen.append(name)
        if len(seen) == STAGE:
            interrupt()
        return stage(log, name)

    monkeypatch.setattr(WorkLog, "stage", counted)
    words = ["fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--precision", "float32"]
    words += ["--model", str(base_of("llava", "llama").directory), "--eval", "none"]
    assert run(*words, "--out", str(tmp_path / "package")) == 130
    assert SAID in capsys.readouterr().err
    assert len(seen) == STAGE
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "step"), [("inspect", 40), ("inspect", 900), ("fold", 2000), ("fold", 9000)]
)
def test_an_interruption_at_a_step_of_a_process_is_a_sentence(
    command: str, step: int, tmp_path: Path
) -> None:
    """``python -m tests.cli.interruptions`` draws more of them, and other commands."""
    stage = Stage.beside(write(tmp_path / "package"))
    assert stage.interrupted(command, step=step) == "interrupted"


def test_no_interruption_comes_between_a_command_and_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("the picture is missing")

    said = app._complain
    monkeypatch.setattr("typer.core.TyperGroup.invoke", refuse)
    monkeypatch.setattr(app, "_complain", lambda *words, **more: (interrupt(), said(*words, **more))[1])
    assert run("targets") == 2
    assert capsys.readouterr().err.strip() == "scale-export: the picture is missing"
