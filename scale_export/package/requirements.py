"""What a package must fulfil beside its own limits: ``[precision.]name operator number``, as in CI.

``int4.retention>=0.9`` holds where the export keeps nine tenths of ScAle's gain. A precision in front says which
package is meant: a requirement on another one is a user's mistake. What was not measured fulfils nothing.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.words import PRECISIONS, Precision

NAMES: Mapping[str, tuple[str, ...]] = {
    "fold": ("legs", "fold", "value"),
    "lowering": ("legs", "lowering", "value"),
    "kl": ("legs", "quantization", "kl"),
    "top1": ("legs", "quantization", "top1_agreement"),
    "runtime.kl": ("legs", "runtime", "kl"),
    "runtime.top1": ("legs", "runtime", "top1_agreement"),
    "preprocessing": ("legs", "preprocessing", "value"),
    "retention": ("legs", "task", "gain_retention"),
    "agreement": ("legs", "task", "agreement_outside_near_ties"),
    "parity.agreement": ("answer_agreement", "agreement_outside_near_ties"),
    "task.accuracy": ("legs", "task", "accuracy", "export", "all", "value"),
    "task.accuracy.spatial": ("legs", "task", "accuracy", "export", "spatial", "value"),
    "task.accuracy.other": ("legs", "task", "accuracy", "export", "other", "value"),
    "task.loss": ("legs", "task", "difference"),
    "task.within": ("legs", "task", "equivalence", "all", "within"),
    "task.within.spatial": ("legs", "task", "equivalence", "spatial", "within"),
    "task.cases": ("legs", "task", "cases"),
    "loss": ("attribution", "whole", "kl"),
    "selftest": ("selftest", "value"),
    "size": ("size",),
}
"""Name → where its value stands: in ``parity.json``, or beside it (``selftest``, ``size``)."""

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement; ``text`` is how it was written."""

    text: str
    name: str
    operator: str
    number: float


@dataclass(frozen=True, slots=True)
class Checked:
    """A requirement with what was measured; a ``value`` of None was not, and fulfils nothing."""

    requirement: str
    value: float | None
    passed: bool


def read_requirements(texts: Iterable[str], precision: Precision) -> tuple[Requirement, ...]:
    """The requirements on a package of that weight precision.

    Raises:
        UserError: not of the form, an unknown name, or one that is meant for another precision.
    """
    return tuple(_read(text, precision) for text in texts)


def _read(text: str, precision: Precision) -> Requirement:
    match = re.fullmatch(r"\s*([a-z0-9_.]+)\s*(>=|<=|>|<)\s*([0-9_.eE+-]+)\s*", text)
    number = _number(match[3]) if match else None
    if match is None or number is None:
        raise UserError(
            f"requirement {text!r} is refused: write NAME>=NUMBER (or <=, >, <), such as int4.retention>=0.9"
        )
    meant, _, rest = match[1].partition(".")
    name = rest if meant in PRECISIONS else match[1]
    if meant in PRECISIONS and meant != precision:
        raise UserError(
            f"requirement {text!r} is for {meant} packages, and this one is {precision}: leave it out"
        )
    if name not in NAMES:
        raise UserError(
            f"requirement {text!r} is refused: {name!r} is nothing that is measured{did_you_mean(name, NAMES)}; "
            f"known: {', '.join(NAMES)}"
        )
    return Requirement(text.strip(), name, match[2], number)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_requirements(
    requirements: Iterable[Requirement],
    *,
    parity: Mapping[str, Any] | None,
    selftest: Mapping[str, Any] | None,
    size: int,
) -> tuple[Checked, ...]:
    """Each requirement against ``parity.json``'s object (None where no leg ran), the self-test and the bytes."""
    measured = {**(parity or {}), "selftest": selftest, "size": size}
    return tuple(_check(requirement, measured) for requirement in requirements)


def _check(requirement: Requirement, measured: Mapping[str, Any]) -> Checked:
    value: Any = measured
    for key in NAMES[requirement.name]:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return Checked(requirement.text, None, passed=False)
    passed = OPERATORS[requirement.operator](value, requirement.number)
    return Checked(requirement.text, float(value), passed=bool(passed))
