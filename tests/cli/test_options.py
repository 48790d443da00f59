"""The options of commands: one record each for the command line, Python and Optimum, and a help that shows it all."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import scale_export
from scale_export.cli.app import OPTIMUM, app, fold_in_optimum
from scale_export.core.options import option_fields
from scale_export.pipeline.request import FoldRequest, ImportRequest, PushRequest, VerifyRequest
from scale_export.plan.options import Origins
from scale_export.training.options import TrainOptions
from tests.helpers.cli import run

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
RECORDS: dict[str, Callable[..., object]] = {
    "fold": FoldRequest,
    "verify": VerifyRequest,
    "doctor": Origins,
    "train": TrainOptions,
    "import": ImportRequest,
    "push": PushRequest,
}


def plain(text: str) -> str:
    """Shown text without boxes, colours and the breaks of its lines."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def help_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "4000")
    assert run(command, "--help") == 0
    return plain(capsys.readouterr().out)


@pytest.mark.parametrize("command", RECORDS)
def test_a_command_takes_its_records_fields_with_their_defaults(command: str):
    parameters = {parameter.name: parameter for parameter in COMMANDS[command].params}
    for field in option_fields(RECORDS[command]):
        if not field.option.on_command_line:
            assert field.name not in parameters
            continue
        found, default = parameters[field.name], field.parameter.default
        assert found.required == (default is inspect.Parameter.empty)
        if not found.required:
            assert found.default == default or (found.default in (None, []) and not default)
        if field.option.argument is None:
            assert found.opts == list(field.flags)


@pytest.mark.parametrize(
    ("function", "record"), [(scale_export.fold, FoldRequest), (scale_export.verify, VerifyRequest)]
)
def test_a_function_takes_its_records_fields_with_their_defaults(function: Any, record: Any):
    shown = inspect.signature(function).parameters
    assert {n: p.default for n, p in shown.items()} == {
        f.name: f.parameter.default for f in option_fields(record)
    }
    assert all(f"{field.name}: {field.option.help}" in function.__doc__ for field in option_fields(record))


@pytest.mark.parametrize("record", RECORDS.values())
def test_the_help_of_fixed_words_names_each(record: Callable[..., object]):
    for field in (one for one in option_fields(record) if one.option.on_command_line):
        for word in field.words:
            assert re.search(rf"\b{word}\b", field.option.help), (field.name, word)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_every_word_of_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Words in brackets are markup where nobody escapes them."""
    text = help_of(command, capsys, monkeypatch)
    for parameter in COMMANDS[command].params:
        sentence = (getattr(parameter, "help", None) or "").replace("\\[", "[")
        assert plain(sentence) in text, parameter.name


def test_the_table_of_a_bits_plan_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert "a table [bits]" in help_of("fold", capsys, monkeypatch)


def test_the_commands_stand_in_their_order(capsys: pytest.CaptureFixture[str]):
    assert list(COMMANDS) == [
        "fold",
        "verify",
        "doctor",
        "sign",
        "push",
        "run",
        "inspect",
        "train",
        "import",
        "bench",
        "targets",
        "families",
        "cache",
    ]


@pytest.mark.parametrize(
    ("option", "word", "meant"),
    [
        ("--fold", "wieghts", "weights"),
        ("--precision", "int44", "int4"),
        ("--calib-weighting", "unifrm", "uniform"),
        ("--scoring", "strct", "strict"),
        ("--parity", "fll", "full"),
    ],
)
def test_a_misspelt_word_is_one_sentence_that_says_what_was_meant(
    option: str, word: str, meant: str, capsys: pytest.CaptureFixture[str]
):
    assert run("fold", "--coeffs", "spatial.pt", "--target", "cpu", option, word) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"scale-export: {option} {word!r} is unknown (did you mean {meant!r}?)")
    with pytest.raises(scale_export.UserError, match=f"did you mean '{meant}'"):
        scale_export.fold("spatial.pt", "cpu", **{option.strip("-").replace("-", "_"): word})


def test_optimum_shows_the_options_under_its_own_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    own = help_of("fold", capsys, monkeypatch)
    assert fold_in_optimum(["--help"]) == 0
    text = plain(capsys.readouterr().out)
    assert f"Usage: {OPTIMUM} [OPTIONS]" in text and f"Example: {OPTIMUM} --coeffs" in text
    assert "scale-export fold" not in text
    assert text.partition(" Options ")[2] == own.partition(" Options ")[2]


def test_a_star_import_needs_no_torch_and_says_what_is_missing(tmp_path: Path):
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxscript', 'optimum')))\n"
        "from scale_export import *\n"
        "for call in (lambda: attach(None, None), lambda: fold('spatial.pt', 'cpu')):\n"
        "    try:\n        call()\n"
        "    except UserError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("needs torch" in line and "scale-export[onnx]" in line for line in lines)
