"""A family's own facts on a device: JSON values that ``Family.runtime_config`` wrote into a manifest, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scale_export.core.errors import UserError
from scale_export.core.records import Json

Runtime = Mapping[str, Json]
"""Name → value, as ``Family.runtime_config`` gives them or a manifest holds them."""


def integer(runtime: Runtime, name: str) -> int:
    """A whole number; raises UserError where there is none of that name."""
    value = runtime.get(name)
    if type(value) is not int:
        raise _refusal(name, "whole number")
    return value


def table(runtime: Runtime, name: str) -> list[list[float]]:
    """Rows of numbers; raises UserError where there are none of that name."""
    value = runtime.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _refusal(name, "table")
    return [_row(row, name) for row in value]


def _row(row: Json, name: str) -> list[float]:
    if not isinstance(row, Sequence) or isinstance(row, str):
        raise _refusal(name, "table")
    return [_number(item, name) for item in row]


def _number(item: Json, name: str) -> float:
    if not isinstance(item, int | float):
        raise _refusal(name, "table of numbers")
    return item


def _refusal(name: str, kind: str) -> UserError:
    return UserError(f"the package's manifest has no {kind} {name!r} among its extras: export it again")
