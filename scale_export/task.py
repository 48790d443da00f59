"""The task leg: paired answers of the base model, PyTorch ScAle and the export on held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import tolerances
from .adapter import attach
from .answers import Answer, answer_questions
from .datasets import Question
from .metrics import Leg
from .records import Coefficients
from .statistics import gain_retention, mcnemar_exact, paired_difference, wilson
from .targets import ParityLimits

MAX_NEW_TOKENS = 16
AskExport = Callable[[Question], str]
Advance = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question with the three answers; ``near_tie`` as the reference saw it."""

    question: Question
    base: str
    scale: str
    export: str
    near_tie: bool

    @property
    def agrees(self) -> bool:
        """Whether the export says what PyTorch ScAle says."""
        return normalise(self.scale) == normalise(self.export)


def normalise(text: str) -> str:
    """How answers are compared: stripped, lower case, single spaces."""
    return " ".join(text.lower().split())


def ask_all(
    model: Any,
    processor: Any,
    coefficients: Coefficients,
    ask_export: AskExport,
    questions: Sequence[Question],
    advance: Advance,
) -> list[Answered]:
    """Ask all three; the references in batches, the export one question at a time as a device does."""
    base = _reference_answers(model, processor, questions, lambda n, of: advance("base", n, of))
    with attach(model, coefficients):
        scale = _reference_answers(model, processor, questions, lambda n, of: advance("PyTorch ScAle", n, of))
    answered = []
    for index, question in enumerate(questions):
        answered.append(
            Answered(
                question=question,
                base=base[index].text,
                scale=scale[index].text,
                export=ask_export(question),
                near_tie=is_near_tie(scale[index]),
            )
        )
        advance("export", index + 1, len(questions))
    return answered


def _reference_answers(
    model: Any, processor: Any, questions: Sequence[Question], progress: Callable[[int, int], None]
) -> list[Answer]:
    return answer_questions(model, processor, questions, max_new_tokens=MAX_NEW_TOKENS, progress=progress)


def is_near_tie(reference: Answer) -> bool:
    """Whether some step of the reference's answer hung on a margin too small to hold any export to."""
    return bool((reference.margins < tolerances.NEAR_TIE_MARGIN * reference.peaks).any())


def agreement(answered: Sequence[Answered]) -> Leg:
    """How often the export's answer is PyTorch ScAle's; measured on any model, with no right answers needed."""
    clear = [a for a in answered if not a.near_tie]
    return {
        "cases": len(answered),
        "agreement": _share([a.agrees for a in answered]),
        "agreement_outside_near_ties": _share([a.agrees for a in clear]),
        "near_ties": len(answered) - len(clear),
    }


def task_leg(dataset: str, answered: Sequence[Answered], limits: ParityLimits) -> Leg:
    """Accuracy of the three with intervals, their paired difference, gain retention and agreement."""
    right = {name: _right(answered, name) for name in ("base", "scale", "export")}
    spatial = np.array([a.question.kind == "spatial" for a in answered])
    kinds = {"all": np.ones(len(answered), bool), "spatial": spatial, "other": ~spatial}
    difference = paired_difference(right["scale"], right["export"])
    retention = gain_retention(right["base"][spatial], right["scale"][spatial], right["export"][spatial])
    leg = {
        "dataset": dataset,
        "accuracy": {
            name: {kind: _accuracy(values[rows]) for kind, rows in kinds.items()}
            for name, values in right.items()
        },
        **agreement(answered),
        "difference": difference.value if difference else None,
        "difference_95": [difference.low, difference.high] if difference else None,
        "mcnemar_p": mcnemar_exact(right["scale"], right["export"]),
        "gain_retention": retention.value if retention else None,
        "gain_retention_95": [retention.low, retention.high] if retention else None,
        "limits": {
            "gain_retention": limits.min_gain_retention,
            "agreement_outside_near_ties": limits.min_answer_agreement,
            "near_ties": limits.near_tie_budget,
        },
    }
    leg["passed"] = _within(leg, limits)
    return leg


def _within(leg: Leg, limits: ParityLimits) -> bool:
    """Whether the leg keeps its limits. Retention is only held to its limit where ScAle gained something."""
    checks = [leg["near_ties"] <= limits.near_tie_budget * leg["cases"]]
    if limits.min_answer_agreement is not None:
        clear = leg["agreement_outside_near_ties"]
        checks.append(clear is not None and clear >= limits.min_answer_agreement)
    if limits.min_gain_retention is not None and leg["gain_retention"] is not None:
        checks.append(leg["gain_retention"] >= limits.min_gain_retention)
    return all(checks)


def _right(answered: Sequence[Answered], who: str) -> NDArray[np.bool_]:
    return np.array([normalise(getattr(a, who)) == normalise(a.question.answer) for a in answered], bool)


def _accuracy(right: NDArray[np.bool_]) -> Leg | None:
    interval = wilson(int(right.sum()), len(right))
    if interval is None:
        return None
    return {"value": float(right.mean()), "low": interval[0], "high": interval[1], "cases": len(right)}


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
