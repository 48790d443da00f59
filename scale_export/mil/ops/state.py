"""States: values that outlive a call. Reading looks at one, writing puts another value in its place."""

from __future__ import annotations

from scale_export.core.records import Array

from .registry import move


@move
def read_state(input: Array) -> Array:
    """The state's present value."""
    return input


@move
def write_state(input: Array, data: Array) -> Array:
    """The state's next value."""
    return data
