"""Which question set the task leg asks."""

from __future__ import annotations

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.questions import dataset_names, load_questions


def evaluation_set(asked: str, coefficients: Coefficients) -> str | None:
    """The question set of the task leg, or None.

    ``auto`` is the set that the coefficients were trained on, if it is one of ours and lies here; ``none`` is no set.

    Raises:
        UserError: a set that can't be loaded.
    """
    if asked == "none":
        return None
    if asked == "auto":
        trained_on = str(coefficients.training.get("data", ""))
        known = trained_on.partition(":")[0] in dataset_names()
        return trained_on if known and _is_here(trained_on) else None
    load_questions(asked, "test", limit=1)
    return asked


def _is_here(spec: str) -> bool:
    try:
        return bool(load_questions(spec, "test", limit=1))
    except UserError:
        return False
