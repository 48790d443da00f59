"""The task leg: paired answers of the base model, PyTorch ScAle and the export on held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scale_export.coefficients.file import Coefficients
from scale_export.core.compare import Leg
from scale_export.core.defaults import SCORING
from scale_export.core.intervals import (
    Bools,
    equivalence,
    gain_retention,
    mcnemar_exact,
    paired_difference,
    wilson,
)
from scale_export.core.limits import NEAR_TIE_MARGIN
from scale_export.core.words import Scoring
from scale_export.model.asking import Answer, answer_questions
from scale_export.model.hooks import attach
from scale_export.plan.targets import ParityLimits
from scale_export.questions.question import Question
from scale_export.questions.scoring import is_right, normalise

MAX_NEW_TOKENS = 16
MAX_LISTED = 100
"""How many differing answers a report lists; their count is always the whole one."""
WHO = ("base", "scale", "export")
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
    return bool((reference.margins < NEAR_TIE_MARGIN * reference.peaks).any())


def agreement(answered: Sequence[Answered], scoring: Scoring = SCORING) -> Leg:
    """How often the export's answer is PyTorch ScAle's, and where not; any model has it, no right answers needed."""
    clear = [a for a in answered if not a.near_tie]
    return {
        "cases": len(answered),
        "agreement": _share([a.agrees for a in answered]),
        "agreement_outside_near_ties": _share([a.agrees for a in clear]),
        "near_ties": len(answered) - len(clear),
        "differences": _differences(answered, scoring),
    }


def _differences(answered: Sequence[Answered], scoring: Scoring) -> Leg:
    """The answers that differ: how many, and the first ``MAX_LISTED`` with the verdict on each."""
    differing = [a for a in answered if not a.agrees]
    return {"count": len(differing), "listed": [_difference(a, scoring) for a in differing[:MAX_LISTED]]}


def _difference(answered: Answered, scoring: Scoring) -> Leg:
    question = answered.question
    known = question.answer != ""
    return {
        "id": question.id,
        "prompt": question.prompt,
        "truth": question.answer if known else None,
        **{who: getattr(answered, who) for who in WHO},
        "right": {who: is_right(getattr(answered, who), question, scoring) for who in WHO} if known else None,
        "near_tie": answered.near_tie,
    }


def task_leg(
    dataset: str,
    answered: Sequence[Answered],
    limits: ParityLimits,
    *,
    scoring: Scoring = SCORING,
    questions_sha256: str | None = None,
) -> Leg:
    """Accuracy of the three with intervals, their paired difference and equivalence, gain retention and agreement.

    Questions that the scoring has no rule for are counted as ``unscored`` and judged by agreement only.
    """
    scored = [a for a in answered if is_right(a.scale, a.question, scoring) is not None]
    right = {who: _right(scored, who, scoring) for who in WHO}
    spatial = np.array([a.question.kind == "spatial" for a in scored], bool)
    kinds = {"all": np.ones(len(scored), bool), "spatial": spatial, "other": ~spatial}
    difference = paired_difference(right["scale"], right["export"])
    retention = gain_retention(right["base"][spatial], right["scale"][spatial], right["export"][spatial])
    leg = {
        "dataset": dataset,
        "questions_sha256": questions_sha256,
        "scoring": scoring,
        "unscored": len(answered) - len(scored),
        "accuracy": {
            name: {kind: _accuracy(values[rows]) for kind, rows in kinds.items()}
            for name, values in right.items()
        },
        **agreement(answered, scoring),
        "difference": difference.value if difference else None,
        "difference_95": [difference.low, difference.high] if difference else None,
        "mcnemar_p": mcnemar_exact(right["scale"], right["export"]),
        "equivalence": {
            "margin": limits.equivalence_margin,
            "all": _equivalence(right, kinds["all"], limits),
            "spatial": _equivalence(right, kinds["spatial"], limits),
        },
        "gain_retention": retention.value if retention else None,
        "gain_retention_95": [retention.low, retention.high] if retention else None,
        "limits": {
            "gain_retention": limits.min_gain_retention,
            "agreement_outside_near_ties": limits.min_answer_agreement,
            "equivalence_margin": limits.equivalence_margin,
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
    if limits.equivalence_margin is not None:
        tested = [leg["equivalence"][kind] for kind in ("all", "spatial")]
        checks.append(tested[0] is not None and all(test["shown"] for test in tested if test is not None))
    return all(checks)


def _equivalence(right: Mapping[str, Bools], rows: Bools, limits: ParityLimits) -> Leg | None:
    found = equivalence(right["scale"][rows], right["export"][rows], limits.equivalence_margin)
    return None if found is None else asdict(found)


def _right(answered: Sequence[Answered], who: str, scoring: Scoring) -> Bools:
    return np.array([bool(is_right(getattr(a, who), a.question, scoring)) for a in answered], bool)


def _accuracy(right: Bools) -> Leg | None:
    interval = wilson(int(right.sum()), len(right))
    if interval is None:
        return None
    return {"value": float(right.mean()), "low": interval[0], "high": interval[1], "cases": len(right)}


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
