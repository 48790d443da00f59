"""Ways to damage bytes, JSON and protobuf messages, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

ODD_BYTES = (
    b"",
    b"\0",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"0" * 40,
    b"../../x",
    b"\xed\xa0\x80",
    b"{" * 200,
    b'"',
    b"-1",
    b"1e999",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "\x1b[31m[red]",
    "\ud800",
    "x" * 5000,
    [],
    {},
    [[]],
    [0],
    {"x": 0},
)


def damaged_bytes(rng: Random, data: bytes) -> bytes:
    """One to four cuts, flips, repeats or odd insertions."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[min(at, len(changed) - 1)] = rng.randrange(256)
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[max(0, at - size) : at] * rng.choice((1, 3))
            case 4:
                changed[at : at + size] = rng.choice(ODD_BYTES)
            case _:
                changed[at : at + size] = rng.randbytes(size)
    return bytes(changed)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    pending = [value]
    while pending:
        container = pending.pop()
        keys = range(len(container)) if isinstance(container, list) else list(container)
        for key in keys:
            yield container, key
            if isinstance(container[key], list | dict):
                pending.append(container[key])


def damaged_value(rng: Random, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed, copied elsewhere, or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return rng.choice(ODD_VALUES)
        container, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container[key], int | float) and not isinstance(container[key], bool):
                container[key] += rng.choice((-1, 1, 1000, 0.5))
            case 2:
                other, name = rng.choice(places)
                if (isinstance(other, dict) and name in other) or (
                    isinstance(other, list) and name < len(other)
                ):
                    container[key] = copy.deepcopy(other[name])
            case 3 if isinstance(container, dict):
                container[rng.choice(("x", "", "\u0000", f"{key}x"))] = container.pop(key)
            case _:
                container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return changed


def damaged_json(rng: Random, data: bytes) -> bytes:
    """Damaged as JSON three times in four, as bytes else."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, data)
    text = json.dumps(damaged_value(rng, json.loads(data)))
    return text.encode("utf-8", "surrogatepass")


def damaged_message(rng: Random, message: Any) -> None:
    """One to four changes somewhere in a protobuf message, in place."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        spots = list(_spots(message))
        if not spots:
            return
        rng.choice(spots)(rng)


Change = Callable[[Random], None]


def _spots(message: Any) -> Iterator[Change]:
    """A change for each set field below a message."""
    pending = [message]
    while pending:
        one = pending.pop()
        for field, value in one.ListFields():
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                yield _map_change(value)
                if field.message_type.fields_by_name["value"].message_type is not None:
                    pending += value.values()
            elif field.is_repeated:
                yield _list_change(value, field)
                if field.message_type is not None:
                    pending += value
            elif field.message_type is not None:
                pending.append(value)
                yield _clear(one, field.name)
            else:
                yield _scalar_change(one, field)


def _clear(message: Any, name: str) -> Change:
    return lambda rng: message.ClearField(name)


def _map_change(mapping: Any) -> Change:
    def change(rng: Random) -> None:
        if not mapping:
            return
        key, other = rng.choice(list(mapping)), rng.choice(list(mapping))
        if rng.random() < 0.5:
            del mapping[key]
        elif hasattr(mapping[key], "CopyFrom"):
            mapping[rng.choice((other, f"{key}x", ""))].CopyFrom(mapping[key])

    return change


def _list_change(values: Any, field: Any) -> Change:
    def change(rng: Random) -> None:
        if not values:
            return
        at = rng.randrange(len(values))
        if rng.random() < 0.4 or field.message_type is None:
            if field.message_type is None and rng.random() < 0.7:
                _put(rng, values[at], lambda odd: values.__setitem__(at, odd))
            else:
                del values[at]
        else:
            values.add().CopyFrom(values[at])

    return change


def _scalar_change(message: Any, field: Any) -> Change:
    def change(rng: Random) -> None:
        _put(rng, getattr(message, field.name), lambda odd: setattr(message, field.name, odd))

    return change


def _put(rng: Random, old: Any, put: Callable[[Any], None]) -> None:
    """Put an odd value of the old one's kind in its place; one that the field can't hold changes nothing."""
    odd: dict[type, tuple[Any, ...]] = {
        bool: (not old if isinstance(old, bool) else True,),
        int: (0, 1, -1, 2, 7, 2**31 - 1, 2**40, 2**62, 10),
        float: (0.0, -1.0, 1e30, float("nan"), float("inf")),
        str: ("", "x", "../../x", "int32", f"{old}x"),
        bytes: (b"", b"\0", bytes(64)),
    }
    try:
        put(rng.choice(odd[type(old)]))
    except (ValueError, TypeError):
        return
