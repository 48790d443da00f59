"""``scale-export run``: one answer, or a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scale_export.core.errors import EXIT_OK, UserError

from .display import quiet_libraries


@quiet_libraries()
def run_prompt(
    *,
    package: Path,
    images: Sequence[Path],
    prompt: str | None,
    chat: bool,
    scale: float,
    coeffs: Path | None,
    max_new_tokens: int,
    threads: int | None,
    as_json: bool,
) -> int:
    """``scale-export run``."""
    from scale_export.coefficients.file import load_coefficients
    from scale_export.device.package import open_package
    from scale_export.device.prompts import Message, assistant_message, open_image, user_message

    if prompt is None and not chat:
        raise UserError("there is nothing to ask: give --prompt, or --chat for a session")
    pictures = [open_image(path) for path in images]
    opened = open_package(package, threads=threads)
    if coeffs is not None:
        opened.coefficients = load_coefficients(coeffs)
    if scale != 1:
        opened.scale = scale
    messages: list[Message] = []
    while True:
        if prompt is None:
            prompt = _ask_user()
            if prompt is None:
                return EXIT_OK
        messages.append(user_message(pictures if not messages else [], prompt))
        answer = _stream(opened, messages, max_new_tokens, show_pieces=not as_json)
        if as_json:
            print(json.dumps({"prompt": prompt, "answer": answer}))
        if not chat:
            return EXIT_OK
        messages.append(assistant_message(answer))
        prompt = None


def _stream(package: Any, messages: Sequence[Any], max_new_tokens: int, *, show_pieces: bool) -> str:
    pieces = []
    for piece in package.stream(package.prepare_chat(messages), max_new_tokens=max_new_tokens):
        pieces.append(piece)
        if show_pieces:
            print(piece, end="", flush=True)
    if show_pieces:
        print()
    return "".join(pieces).strip()


def _ask_user() -> str | None:
    """The next question of a chat, or None where the user ends it."""
    try:
        return input("> ").strip() or None
    except EOFError:
        return None
