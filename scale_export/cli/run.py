"""``scale-export run``: one answer, or a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scale_export.core.defaults import ANSWER_TOKENS
from scale_export.core.errors import EXIT_OK, UserError

from .conversation import Conversation
from .display import quiet_libraries
from .options import Json, PackageArg, Threads


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
    public_key: Annotated[
        Path | None, typer.Option(help="Answer only where the package carries this key's signature.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="The signature's file, by default PACKAGE.sig.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Ask a package a question about a picture; the answer streams.

    Example: scale-export run spatial-cpu --image scene.png --prompt "what is left of the red circle ?"
    """
    from scale_export.coefficients.file import load_coefficients
    from scale_export.core.pictures import load_picture
    from scale_export.device.package import open_package

    if prompt is None and not chat:
        raise UserError("there is no question: give --prompt, or --chat to ask several")
    pictures = [load_picture(path) for path in image or []]
    opened = open_package(package, threads=threads, public_key=public_key, signature=signature)
    other = None if coeffs is None else load_coefficients(coeffs)
    opened.ready()
    if other is not None:
        opened.coefficients = other
    if scale != 1:
        opened.scale = scale
    conversation = Conversation(
        package=opened, pictures=pictures, max_new_tokens=max_new_tokens, as_json=as_json
    )
    if chat:
        conversation.go_on(prompt)
    elif prompt is not None:
        conversation.ask(prompt)
    return EXIT_OK
