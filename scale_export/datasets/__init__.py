"""Question sets: pictures with questions and the answers that a model should give.

A set is named on the command line by ``NAME`` or ``NAME:ARGUMENT``; each lives in a file of that name here.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..errors import UserError, did_you_mean

Split = Literal["train", "calibration", "validation", "test"]
Kind = Literal["spatial", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about one picture.

    ``instance`` names the picture: questions of one instance never lie in two splits. ``topic`` is a
    finer label within ``kind`` ("left_of", "count", ...), for tables.
    """

    id: str
    instance: str
    image: Image.Image | None
    prompt: str
    answer: str
    kind: Kind
    topic: str


def dataset_names() -> list[str]:
    """The names of the sets that can be loaded, one per file of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_questions(spec: str, split: Split, *, limit: int | None = None) -> list[Question]:
    """Load ``NAME`` or ``NAME:ARGUMENT``; the first ``limit`` questions of the split, in a fixed order.

    Raises:
        UserError: an unknown set, or whatever the set refuses about its argument.
    """
    name, _, argument = spec.partition(":")
    if name not in dataset_names():
        known = dataset_names()
        raise UserError(
            f"unknown question set {name!r}{did_you_mean(name, known)}; known sets: {', '.join(known)}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    questions: list[Question] = module.load(argument, split, limit)
    return questions
