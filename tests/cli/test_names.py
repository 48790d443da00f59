"""Commands end as they should, whatever the names of files and the words in them are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text

from scale_export.cli import display
from scale_export.coefficients.file import load_coefficients
from tests.helpers.cli import run
from tests.helpers.packages import reseal

NAMES = ["[bold]x", "x[", "[red", "x\x1b[31m", ":x:", "x\n"]


@pytest.mark.parametrize("name", [*NAMES, "[/]"])
def test_a_line_says_a_name_as_it_is(name: str) -> None:
    with display.console.capture() as captured:
        display.say(f"Package: {name}, ", display.verdict(True))
    assert isinstance(display.verdict(True), Text)
    assert captured.get() == f"Package: {display.printable(name)}, passed\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_package_and_a_coefficient_file_of_any_name(
    name: str, package: Path, coefficient_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    shutil.copytree(package, place)
    reseal(place, lambda table: table.update(name=f"[/]{name}\x1b[31m", target="[/bold]"))
    coefficients = load_coefficients(coefficient_file)
    changed = replace(coefficients, training={"data": "[/]\x1b[31m"})
    changed.save(tmp_path / f"{name}.safetensors")
    for path in (place, tmp_path / f"{name}.safetensors"):
        assert run("inspect", str(path)) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said and "[/" in said
    (place / "more").write_bytes(b"")
    assert run("inspect", str(place)) == 2
    said = capsys.readouterr().err
    assert display.printable(name) in said and "\x1b" not in said and said.count("\n") == 1
