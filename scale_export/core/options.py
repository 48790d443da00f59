"""Records of options. A field says its type, its default and, in an ``Option``, its one-line meaning: once.

A record is a frozen dataclass whose fields are ``Annotated[type, Option(...)]``.

1. The command line makes an option of every field (``cli.options.command``).
2. A Python function takes them as its own arguments (``takes``): type checkers check them, ``help`` shows them.
3. ``check`` refuses a word that a field's ``Literal`` doesn't hold and a number out of its range, whoever gave it.

Records that share fields are put together by inheritance. Python allows one base with slots, so they have none.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Final, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

StrPath = str | Path
MOST: Final = 2**31 - 1
"""Of every whole number: what libraries hold in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Option:
    """What a field means, and how the command line spells it.

    Attributes:
        help: its meaning, in a line.
        flags: how it is typed; None for ``--`` and the field's name.
        argument: the word that the help shows for it, where it is typed without a flag.
        least, most: the smallest and the largest number that it takes; a whole number is never above ``MOST``.
        parse: makes its value of a typed word, or raises UserError; None where the field's type says it all.
        on_command_line: False for what Python alone takes.
    """

    help: str
    flags: tuple[str, ...] | None = None
    argument: str | None = None
    least: int | None = None
    most: int | None = None
    parse: Callable[[str], object] | None = None
    on_command_line: bool = True

    def __repr__(self) -> str:
        return f"Option({self.help!r})"  # short, for signatures that show it


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """One field of a record; ``parameter`` is that of the record's constructor, ``type`` has its ``Option`` off."""

    parameter: inspect.Parameter
    type: object
    option: Option

    @property
    def name(self) -> str:
        """The field's name, which is its name in Python."""
        return self.parameter.name

    @property
    def flags(self) -> tuple[str, ...]:
        """How the command line spells it."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def spelling(self) -> str:
        """What error sentences call it."""
        return self.flags[0] if self.option.on_command_line else self.name

    @property
    def kinds(self) -> tuple[object, ...]:
        """The types that a value may have, ``NoneType`` among them."""
        return get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that a value may be; empty where they aren't fixed."""
        return tuple(word for kind in self.kinds if get_origin(kind) is Literal for word in get_args(kind))


@functools.cache
def option_fields(record: Callable[..., object]) -> tuple[OptionField, ...]:
    """The fields of a record, in the order of its constructor's parameters."""
    hints = get_type_hints(record, include_extras=True)
    found = []
    for parameter in inspect.signature(record).parameters.values():
        kind, option = get_args(hints[parameter.name])
        found.append(OptionField(parameter=parameter, type=kind, option=option))
    return tuple(found)


def check(record: object) -> None:
    """Rule 3, for a record's ``__post_init__``.

    Raises:
        UserError: a word that isn't known, or a number that is too small, too large or none.
    """
    kind: Callable[..., object] = type(record)
    for own in option_fields(kind):
        value, words = getattr(record, own.name), own.words
        if words and value is not None and value not in words:
            hint = did_you_mean(str(value), words)
            raise UserError(f"{own.spelling} {value!r} is unknown{hint}: known are {', '.join(words)}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(own, value)


def _check_number(own: OptionField, value: float) -> None:
    least, most = own.option.least, own.option.most
    if not math.isfinite(value):
        raise UserError(f"{own.spelling} {value} is refused: give a number")
    if least is not None and value < least:
        raise UserError(f"{own.spelling} {value} is refused: give {least} or more")
    if most is None and isinstance(value, int):
        most = MOST
    if most is not None and value > most:
        raise UserError(f"{own.spelling} {value} is refused: give {most} or less")


def takes(record: Callable[P, R]) -> Callable[[Callable[[R], T]], Callable[P, T]]:
    """Give a function of one record the record's fields as its arguments, with their types and defaults.

    Its ``help`` shows each field with its meaning.
    """

    def given_fields(body: Callable[[R], T]) -> Callable[P, T]:
        @functools.wraps(body)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return body(record(*args, **kwargs))

        own = option_fields(record)
        shown = [field.parameter.replace(annotation=field.type) for field in own]
        result = inspect.signature(body).return_annotation
        meanings = "\n".join(f"    {field.name}: {field.option.help}" for field in own)
        vars(call)["__signature__"] = inspect.Signature(shown, return_annotation=result)
        words, heading, results = (inspect.getdoc(body) or "").partition("\n\nReturns:")
        call.__doc__ = f"{words}\n\nArgs:\n{meanings}{heading}{results}\n"
        return call

    return given_fields
