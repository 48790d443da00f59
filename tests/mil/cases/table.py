"""The table of cases, and what fills and checks it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scale_export.core.limits import INTERPRETER_ATOL, INTERPRETER_RTOL

RANDOM = np.random.default_rng(7)


@dataclass(frozen=True, slots=True)
class Case:
    inputs: dict[str, Any]
    expected: tuple[np.ndarray, ...]


CASES: dict[str, list[Case]] = defaultdict(list)


def case(type: str, expect: Any, **inputs: Any) -> None:
    """Add a case; a callable ``expect`` gets the inputs as tensors: by name, or PyTorch's functions by position."""
    if callable(expect):
        given = {name: tensors(value) for name, value in inputs.items()}
        expect = (
            expect(**given) if (expect.__module__ or "").startswith(__package__) else expect(*given.values())
        )
    expected = expect if isinstance(expect, tuple | list) else (expect,)
    CASES[type].append(Case(inputs, tuple(np.asarray(value) for value in expected)))


def tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64) if value.dtype == np.uint16 else value)
    if isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
        return tuple(map(tensors, value))
    return value


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def integers(low: int, high: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(low, high, shape).astype(np.int32)


def booleans(*shape: int) -> np.ndarray:
    return RANDOM.random(shape) < 0.5


def floats(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


X = normal(2, 3, 4)
Y = normal(4, 5, 6)


def close(actual: Any, expected: np.ndarray) -> bool:
    """Whether a result is the expected one: kind of type, shape, and values."""
    actual = np.asarray(actual)
    kinds = {"i": "iu", "u": "iu", "b": "b", "f": "f"}
    if actual.dtype.kind not in kinds[expected.dtype.kind] or actual.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((actual == expected).all())
    return np.allclose(actual, expected, INTERPRETER_RTOL, INTERPRETER_ATOL, equal_nan=True)


def passes(function: Callable[..., Any], case: Case) -> bool:
    """Whether a function gives what a case expects."""
    with np.errstate(all="ignore"):
        results = function(**case.inputs)
    results = results if isinstance(results, tuple | list) else (results,)
    return len(results) == len(case.expected) and all(map(close, results, case.expected))
