"""What a package must fulfil beside its own limits: ``[precision.]name operator number``, as in CI.

``int4.retention>=0.9`` holds where the export keeps nine tenths of ScAle's gain. A precision in front says which
package is meant: a requirement on another one is a user's mistake. What was not measured fulfils nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.words import PRECISIONS, Precision

NAMES = (
    "fold",
    "lowering",
    "kl",
    "kl.high",
    "top1",
    "top1.low",
    "decided",
    "decided.low",
    "runtime.kl",
    "runtime.kl.high",
    "runtime.top1",
    "runtime.top1.low",
    "runtime.decided",
    "runtime.decided.low",
    "preprocessing",
    "shrinking",
    "retention",
    "agreement",
    "agreement.decided",
    "parity.agreement",
    "parity.agreement.decided",
    "task.accuracy",
    "task.accuracy.spatial",
    "task.accuracy.other",
    "task.loss",
    "task.within",
    "task.within.spatial",
    "task.cases",
    "loss",
    "selftest",
    "size",
    "device.error",
    "device.agreement",
    "device.decode",
)
"""What a requirement may name: the figures that the legs' records give, the self-test's error, the package's bytes."""
LATER = frozenset({"selftest", "device.error", "device.agreement", "device.decode"})
"""What is not measured while a package is made."""

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
    """A requirement with what was measured; a ``value`` of None was not, or is not finite, and fulfils nothing."""

    requirement: str
    value: float | None
    passed: bool


def read_requirements(
    texts: Iterable[str], precision: Precision, *, exporting: bool = False
) -> tuple[Requirement, ...]:
    """The requirements on a package of that weight precision; ``exporting``, while it is made.

    Raises:
        UserError: not of the form, an unknown name, one that is meant for another precision, or one that an export does
            not measure.
    """
    found = tuple(_read(text, precision) for text in texts)
    for requirement in found:
        if exporting and requirement.name in LATER:
            raise UserError(
                f"requirement {requirement.text!r} is refused: an export records the self-test; give it to "
                f"verify, which measures it or is given a device's result"
            )
    return found


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
            f"requirement {text!r} is refused: nothing measured is called {name!r}{did_you_mean(name, NAMES)}; "
            f"known: {', '.join(NAMES)}"
        )
    return Requirement(text.strip(), name, match[2], number)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_requirements(
    requirements: Iterable[Requirement], measured: Mapping[str, float | None]
) -> tuple[Checked, ...]:
    """Each requirement against the figure of its name; one that is None or isn't there was not measured."""
    return tuple(_check(requirement, measured.get(requirement.name)) for requirement in requirements)


def _check(requirement: Requirement, value: float | None) -> Checked:
    if value is None or not math.isfinite(value):
        return Checked(requirement.text, None, passed=False)
    passed = OPERATORS[requirement.operator](value, requirement.number)
    return Checked(requirement.text, float(value), passed=passed)
