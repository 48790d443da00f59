"""``scale-export run``: one answer, or a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scale_export.core.defaults import ANSWER_TOKENS
from scale_export.core.errors import EXIT_OK, UserError
from scale_export.core.terminal import printable

from .display import quiet_libraries
from .options import Json, PackageArg, Threads

if TYPE_CHECKING:
    from scale_export.device.package import Package
    from scale_export.device.prompts import Message


@quiet_libraries()
def run(
    package: PackageArg,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture; may be given several times.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The question.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask on, question after question; an empty line ends.")
    ] = False,
    scale: Annotated[
        float, typer.Option(help="Strength of the scalars: 0 is the base model, 1 is ScAle.")
    ] = 1.0,
    coeffs: Annotated[
        Path | None, typer.Option(help="Other coefficients of the same base model, swapped in.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="The longest answer, in tokens.")
    ] = ANSWER_TOKENS,
    threads: Threads = None,
    as_json: Json = False,
) -> int:
    """Ask a package a question about a picture; the answer streams.

    Example: scale-export run spatial-cpu --image scene.png --prompt "what is left of the red circle ?"
    """
    from scale_export.coefficients.file import load_coefficients
    from scale_export.core.pictures import load_picture
    from scale_export.device.package import open_package
    from scale_export.device.prompts import assistant_message, user_message

    if prompt is None and not chat:
        raise UserError("there is no question: give --prompt, or --chat to ask several")
    pictures = [load_picture(path) for path in image or []]
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


def _stream(package: Package, messages: Sequence[Message], max_new_tokens: int, *, show_pieces: bool) -> str:
    pieces = []
    for piece in package.stream(package.prepare_chat(messages), max_new_tokens=max_new_tokens):
        pieces.append(piece)
        if show_pieces:
            print(printable(piece, keep="\n\t"), end="", flush=True)
    if show_pieces:
        print()
    return "".join(pieces).strip()


def _ask_user() -> str | None:
    """The next question of a chat, or None where the user ends it."""
    try:
        return input("> ").strip() or None
    except EOFError:
        return None
