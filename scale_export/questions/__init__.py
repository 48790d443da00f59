"""Question sets: pictures with questions and the answers that a model should give.

A set is named on the command line by ``NAME`` or ``NAME:ARGUMENT``; each lives in a file of that name here. Sets
on a user's own disk take their directory as the argument (``spatialeval:DIR``).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.words import Split

from . import sets
from .question import Question


def dataset_names() -> list[str]:
    """The names of the sets that can be loaded, one per file of ``sets``."""
    return sorted(
        module.name for module in pkgutil.iter_modules(sets.__path__) if not module.name.startswith("_")
    )


def load_questions(spec: str, split: Split, *, limit: int | None = None) -> list[Question]:
    """Load ``NAME`` or ``NAME:ARGUMENT``; the first ``limit`` questions of the split, in a fixed order.

    Raises:
        UserError: an unknown set, or whatever the set refuses about its argument.
    """
    module, argument = _module(spec)
    questions: list[Question] = module.load(argument, split, limit)
    return questions


def is_generated(spec: str) -> bool:
    """Whether it names a set of ours that anyone can make again, not files on somebody's disk."""
    return spec.partition(":")[0] in dataset_names() and not getattr(_module(spec)[0], "ON_DISK", False)


def public_name(spec: str) -> str:
    """The set's name as reports carry it: with its argument, unless that is a place on somebody's disk."""
    _module(spec)
    return spec if is_generated(spec) else spec.partition(":")[0]


def _module(spec: str) -> tuple[ModuleType, str]:
    name, _, argument = spec.partition(":")
    if name in ("text", "self"):
        raise UserError(f"{name} holds no questions: give it to --calib, and name a question set here")
    if name not in dataset_names():
        known = dataset_names()
        raise UserError(
            f"unknown question set {name!r}{did_you_mean(name, known)}; known sets: {', '.join(known)}"
        )
    return importlib.import_module(f"{sets.__name__}.{name}"), argument
