"""Options of the command line: those that commands share, and those that come from a record."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Concatenate, TypeVar, get_origin

import typer
from rich.markup import escape

from scale_export.core.options import OptionField, option_fields

R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PackageArg = Annotated[
    str,
    typer.Argument(
        metavar="PKG",
        help=escape("A package: the directory that fold wrote, or OWNER/NAME[@REVISION] on the hub."),
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the runtime; by default its own choice.")
]


def command(record: Callable[..., R]) -> Callable[[Callable[Concatenate[R, ...], int]], Callable[..., int]]:
    """Make a command of a function that takes a record of options first: the record's fields become its options."""

    def with_fields(body: Callable[Concatenate[R, ...], int]) -> Callable[..., int]:
        typed = [field for field in option_fields(record) if field.option.on_command_line]
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]

        def run(**given: object) -> int:
            asked = record(**{field.name: given.pop(field.name) for field in typed})
            return body(asked, **given)

        functools.update_wrapper(run, body, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        vars(run).pop("__wrapped__")  # whose parameters Typer would read
        vars(run)["__signature__"] = inspect.Signature(
            sorted([*map(_parameter, typed), *own], key=lambda p: p.default is not p.empty)
        )
        return run

    return with_fields


def _parameter(field: OptionField) -> inspect.Parameter:
    """What Typer reads of a record's field. Words stay strings: the record refuses others, and says what was meant."""
    option = field.option
    text = escape(option.help)
    shown: object
    if option.argument:
        shown = typer.Argument(metavar=option.argument, help=text)
    else:
        shown = typer.Option(*field.flags, help=text, parser=option.parse)
    return field.parameter.replace(
        kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[_typed(field), shown]
    )


def _typed(field: OptionField) -> object:
    """The type of what is typed on the command line for a field."""
    kinds = field.kinds
    if any(get_origin(kind) is Sequence for kind in kinds):
        return list[str]
    plain = (bool, int, float, Path)
    typed: type = next((one for one in plain if one in kinds and field.option.parse is None), str)
    return typed | None if type(None) in kinds else typed
