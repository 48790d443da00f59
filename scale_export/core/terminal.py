"""The one door to a terminal: text of files, paths and models is shown as it is, and obeyed nowhere."""

from __future__ import annotations

import re
from typing import Any, Final

from rich.console import Console
from rich.text import Text

_OBEYED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls of terminals, line ends, what turns the direction of writing, and halves of surrogate pairs."""


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with every character that a terminal obeys written out, ESC as ``\x1b``, but those in ``keep``."""
    return _OBEYED.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


class Terminal(Console):
    """A console that takes no markup, no emoji codes and no control characters from strings; styles are ``Text``."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Every string that is printed, by itself or in a table, comes by here."""
        return super().render_str(printable(text, keep="\n"), **how)
