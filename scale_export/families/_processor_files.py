"""What a processor's files may ask for before anything is parsed: their sizes, and how long tokenizers make texts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from scale_export.core.errors import UserError
from scale_export.core.inside import check_regular
from scale_export.core.records import Json

TOKENIZER: Final = "tokenizer.json"
MOST_BYTES: Final[Mapping[str, int]] = {
    TOKENIZER: 128 << 20,
    "chat_template.jinja": 1 << 20,
    "chat_template.json": 1 << 20,
    **dict.fromkeys(
        (
            "tokenizer.model",
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "added_tokens.json",
            "tokenizer_config.json",
        ),
        32 << 20,
    ),
    **dict.fromkeys(
        (
            "config.json",
            "generation_config.json",
            "special_tokens_map.json",
            "processor_config.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
        ),
        4 << 20,
    ),
}
"""File → its largest size. The largest that is known is Gemma's tokenizer, of 33 MB."""

MOST_TOKENS: Final = 1 << 20
"""Of a length that a tokenizer pads or cuts to."""
_LENGTHS: Final = re.compile(rb'"(?:padding|truncation)"\s*:\s*\{')
_SPELT: Final = re.compile(rb"\\u00[67]", re.IGNORECASE)
"""A letter of ASCII as JSON's escape, which no writer makes: it may hide a key."""
AGAIN: Final = "take that file from the model's own repository again"


def check_sizes(directory: Path) -> None:
    """Refuse files of a processor that are larger than any, and a tokenizer that makes every text as long as memory.

    Raises:
        UserError: such a file, or a pipe, a socket or a device in place of one.
    """
    for name, most in MOST_BYTES.items():
        path = directory / name
        if not path.is_file():
            check_regular(path)
            continue
        size = path.stat().st_size
        if size > most:
            raise UserError(
                f"{path} is refused, since it has {size:,} bytes and {most:,} at most are read: {AGAIN}"
            )
    if (directory / TOKENIZER).is_file():
        _check_lengths(directory / TOKENIZER)


def _check_lengths(path: Path) -> None:
    """Refuse lengths that a tokenizer would allocate at once, and end the process where it can't."""
    content = path.read_bytes()
    if not (_LENGTHS.search(content) or _SPELT.search(content)):
        return
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        return  # transformers refuses it
    if not isinstance(table, dict):
        return
    for name, length in _lengths(table):
        if not isinstance(length, int) or length > MOST_TOKENS:
            raise UserError(
                f"{path} is refused, since its {name} is {str(length)[:40]} tokens and {MOST_TOKENS:,} at most are "
                f"taken: {AGAIN}"
            )


def _lengths(table: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """Every length that a tokenizer's padding and truncation name."""
    found: list[tuple[str, Json]] = []
    for part in ("padding", "truncation"):
        rule = table.get(part)
        if isinstance(rule, dict):
            strategy = rule.get("strategy")
            fixed = strategy.get("Fixed", 0) if isinstance(strategy, dict) else 0
            wanted = (
                fixed,
                rule.get("pad_to_multiple_of") or 0,
                rule.get("max_length", 0),
                rule.get("stride", 0),
            )
            found += [(part, length) for length in wanted]
    return found
