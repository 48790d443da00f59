"""What comes out of files is shown on a terminal, and neither obeyed by it nor taken for markup."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from scale_export.core.progress import WorkLog
from scale_export.core.terminal import Terminal, printable

NAMES = [
    "[bold]x",
    "[/]",
    "[/bold]",
    "[red]x[/red]",
    ":smile:",
    "[link=file:///etc/passwd]x[/link]",
    "[",
    "\\[x]",
]
CONTROLS = {
    "\x1b[31m": r"\x1b[31m",
    "\x9b31m": r"\x9b31m",
    "\u202e": r"\u202e",
    "a\rb": r"a\rb",
    "\udcff": r"\udcff",
}


def shown(content: object) -> str:
    terminal = Terminal()
    terminal.file, terminal.width = io.StringIO(), 200
    terminal._force_terminal = True
    terminal.print(content)
    return terminal.file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_markup_is_text_in_lines_tables_and_titles(name: str) -> None:
    assert shown(name) == f"{name}\n"
    table = Table(name, title=name)
    table.add_row(name)
    assert shown(table).count(name) == 3


@pytest.mark.parametrize("text", CONTROLS)
def test_controls_are_written_out(text: str) -> None:
    assert shown(text) == f"{CONTROLS[text]}\n" and printable(text) == CONTROLS[text]
    table = Table("name")
    table.add_row(text)
    assert CONTROLS[text] in shown(table) and text not in shown(table)


def test_what_is_kept_is_kept_and_words_are_words() -> None:
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert printable("a\nb") == r"a\nb"
    words = "été 日本語 שלום \u200dئا 👩\u200d🚀"
    assert printable(words) == words


def test_a_stage_is_named_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    log = WorkLog()
    with log.stage("[/]\x1b[31m"):
        log.advance("[/]", 1, 2)
    assert r"[/]\x1b[31m" in capsys.readouterr().err
