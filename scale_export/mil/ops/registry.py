"""The table of operations, and what their parameters may be annotated with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar, get_type_hints

from scale_export.core.records import Array

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
Arrays = tuple[Array, ...]
Scalar = bool | int | float | str
Argument = Array | Arrays | Scalar | tuple[Scalar, ...]
"""What an operation's function takes."""
Result = Array | list[Array] | Arrays
Function = Callable[..., Result]

Named = TypeVar("Named", bound=Function)

REGISTRY: dict[str, Function] = {}
"""Operation type → function. Its parameters are the operation's inputs by name; their annotations say what they become:
``int``, ``float``, ``bool`` and ``str`` a scalar, ``Ints`` and ``Bools`` a tuple, ``Array`` the array as it is, and
``Arrays`` a tuple of them."""

MOVES: set[str] = set()
"""Operations that were registered by ``move``."""


def op(function: Named) -> Named:
    """Register a function under its name, less a trailing underscore that dodges a Python name."""
    REGISTRY[function.__name__.rstrip("_")] = function
    return function


def move(function: Named) -> Named:
    """Register a function whose results are values of its inputs, so that rounding them again would change nothing."""
    MOVES.add(function.__name__)
    return op(function)


def scalar(value: Array) -> Scalar:
    """The one element of an array."""
    element: Scalar = value.item()
    return element


def items(value: Array) -> tuple[Scalar, ...]:
    """The elements of a 1-D array."""
    return tuple(value.tolist())


CONVERTERS: dict[object, Callable[[Array], Argument]] = {
    kind: convert
    for base, convert in (
        (int, scalar),
        (float, scalar),
        (bool, scalar),
        (str, scalar),
        (Ints, items),
        (Bools, items),
    )
    for kind in (base, base | None)
}
"""Annotation → what turns an array into it; other annotations take arrays as they are."""


@functools.cache
def parameters(type: str) -> Mapping[str, object]:
    """What an operation's function takes: name → annotation."""
    return {name: kind for name, kind in get_type_hints(REGISTRY[type]).items() if name != "return"}
