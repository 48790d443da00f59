"""The task leg: paired answers of the base model, PyTorch ScAle and the export on held-out questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from scale_export.core.defaults import SCORING
from scale_export.core.intervals import (
    Bools,
    Equivalence,
    Estimate,
    equivalence,
    gain_retention,
    mcnemar_exact,
    paired_difference,
    proportion,
)
from scale_export.core.words import Scoring
from scale_export.plan.targets import ParityLimits
from scale_export.questions.scoring import is_right

from .answers import Agreement, Answered, agreement
from .numbers import interval, number, percent, points
from .rows import Row, at_least, at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """The share of right answers by kind of question, with Wilson's interval; None where there was no such question."""

    all: Estimate | None
    spatial: Estimate | None
    other: Estimate | None

    def by_kind(self) -> Mapping[str, Estimate | None]:
        """Kind → the share."""
        return {"all": self.all, "spatial": self.spatial, "other": self.other}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLeg:
    """Accuracy of the three with intervals, their paired difference and equivalence, gain retention and agreement.

    Attributes:
        unscored: questions that the scoring has no rule for; they are judged by agreement only.
        base, scale, export: whose answers were right how often.
        difference: accuracy of PyTorch ScAle minus the export's; None where nothing was scored.
        equivalent, equivalent_spatial: on all scored questions, and on the spatial ones; None where there are none.
        retention: the share of ScAle's gain on spatial questions that the export keeps; None where there is no gain.
    """

    name: ClassVar = "task"
    meaning: ClassVar = "PyTorch ScAle's answers → the export's"

    dataset: str
    questions_sha256: str | None
    scoring: Scoring
    unscored: int
    base: Accuracy
    scale: Accuracy
    export: Accuracy
    agreement: Agreement
    difference: Estimate | None
    mcnemar_p: float | None
    equivalent: Equivalence | None
    equivalent_spatial: Equivalence | None
    retention: Estimate | None
    limits: ParityLimits

    @property
    def cases(self) -> int:
        """How many questions were asked."""
        return self.agreement.cases

    @property
    def accuracy(self) -> Mapping[str, Accuracy]:
        """The three by name."""
        return {"base": self.base, "scale": self.scale, "export": self.export}

    @property
    def equivalences(self) -> Mapping[str, Equivalence | None]:
        """Kind of question → what the two one-sided tests show."""
        return {"all": self.equivalent, "spatial": self.equivalent_spatial}

    @property
    def passed(self) -> bool:
        """Whether questions were asked and it keeps its limits.

        Retention is only held to its limit where ScAle gained something.
        """
        limits, agreed = self.limits, self.agreement
        checks = [agreed.cases > 0, agreed.near_ties <= limits.near_tie_budget * agreed.cases]
        if limits.min_answer_agreement is not None:
            share, least = self.held_agreement, limits.min_answer_agreement
            nothing_to_hold = limits.of_integers and agreed.cases > 0
            checks.append(nothing_to_hold if share is None else share >= least)
        if limits.min_gain_retention is not None and self.retention is not None:
            checks.append(self.retention.value >= limits.min_gain_retention)
        if limits.equivalence_margin is not None:
            tested = [test for test in self.equivalences.values() if test is not None]
            checks.append(self.equivalent is not None and all(test.shown for test in tested))
        return all(checks)

    @property
    def held_agreement(self) -> float | None:
        """The share of equal answers that is held to the limit.

        Rounded weights may choose otherwise where PyTorch ScAle was not decided: nobody loses by it, and accuracy is
        held by itself. Float weights may not, but for near-ties.
        """
        agreed = self.agreement
        return agreed.where_decided if self.limits.of_integers else agreed.outside_near_ties

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        return tuple(self._rows())

    def _rows(self) -> Iterator[Row]:
        limits, agreed, retention = self.limits, self.agreement, self.retention
        label = "same answers, near-ties aside"
        if limits.of_integers:
            label = f"same answers, {number(agreed.decided)} that PyTorch ScAle was decided about"
        least, lost = limits.min_answer_agreement, "answers changed"
        yield at_least(self.name, label, self.held_agreement, least, lost=lost)
        kept = None if retention is None else retention.value
        yield at_least(self.name, "gain retention", kept, limits.min_gain_retention, lost="gain lost")
        if limits.equivalence_margin is not None:
            for kind, test in self.equivalences.items():
                shown = None if test is None else test.within
                label = f"shown equally accurate within, {kind}"
                yield at_most(self.name, label, shown, limits.equivalence_margin)
        if self.cases:
            share = agreed.near_ties / self.cases
            yield at_most(self.name, "share of near-ties", share, limits.near_tie_budget)

    def facts(self) -> Iterator[tuple[str, str]]:
        """Label and value of what was asked and of the paired statistics, in words."""
        agreed, retention = self.agreement, self.retention
        yield "Question set", self.dataset
        unscored = f", {number(self.unscored)} questions without a rule" if self.unscored else ""
        yield "Scoring", f"{self.scoring}{unscored}"
        yield "Same answer as PyTorch ScAle", percent(agreed.share)
        yield "The same, near-ties aside", percent(agreed.outside_near_ties)
        yield "The same where PyTorch ScAle was decided", percent(agreed.where_decided)
        yield "Near-ties", f"{number(agreed.near_ties)} of {number(agreed.cases)}"
        lost = None if self.difference is None else self.difference.value
        yield "Accuracy lost by the export", points(lost) + interval(self.difference, 2)
        for kind, test in self.equivalences.items():
            if test is not None:
                yield f"Shown equally accurate within, {kind}", f"± {points(test.within)}"
        yield "McNemar's exact p", number(self.mcnemar_p)
        kept = None if retention is None else retention.value
        yield "Gain retention", percent(kept) + interval(retention, 1)

    def figures(self) -> Mapping[str, float | None]:
        right = {
            kind: None if share is None else share.value for kind, share in self.export.by_kind().items()
        }
        shown = {kind: None if test is None else test.within for kind, test in self.equivalences.items()}
        return {
            "retention": None if self.retention is None else self.retention.value,
            **self.agreement.figures("agreement"),
            "task.accuracy": right["all"],
            "task.accuracy.spatial": right["spatial"],
            "task.accuracy.other": right["other"],
            "task.loss": None if self.difference is None else self.difference.value,
            "task.within": shown["all"],
            "task.within.spatial": shown["spatial"],
            "task.cases": self.cases,
        }

    def to_json(self) -> dict[str, object]:
        limits = self.limits
        return {
            "dataset": self.dataset,
            "questions_sha256": self.questions_sha256,
            "scoring": self.scoring,
            "unscored": self.unscored,
            "accuracy": {who: asdict(accuracy) for who, accuracy in self.accuracy.items()},
            **self.agreement.to_json(),
            **_with_interval("difference", self.difference),
            "mcnemar_p": self.mcnemar_p,
            "equivalence": {
                "margin": limits.equivalence_margin,
                **{kind: test and asdict(test) for kind, test in self.equivalences.items()},
            },
            **_with_interval("gain_retention", self.retention),
            "limits": {
                "gain_retention": limits.min_gain_retention,
                "agreement_where_decided" if limits.of_integers else "agreement_outside_near_ties": (
                    limits.min_answer_agreement
                ),
                "equivalence_margin": limits.equivalence_margin,
                "near_ties": limits.near_tie_budget,
            },
            "passed": self.passed,
        }


def _with_interval(name: str, found: Estimate | None) -> dict[str, object]:
    if found is None:
        return {name: None, f"{name}_95": None}
    return {name: found.value, f"{name}_95": [found.low, found.high]}


def task_leg(
    dataset: str,
    answered: Sequence[Answered],
    limits: ParityLimits,
    *,
    scoring: Scoring = SCORING,
    questions_sha256: str | None = None,
) -> TaskLeg:
    """The task leg of those answers.

    Questions that the scoring has no rule for are counted as ``unscored`` and judged by agreement only.
    """
    scored = [a for a in answered if is_right(a.scale, a.question, scoring) is not None]
    base, scale, export = (
        np.array(
            [bool(is_right(answer, a.question, scoring)) for a, answer in zip(scored, said, strict=True)],
            bool,
        )
        for said in ([a.of_base for a in scored], [a.scale for a in scored], [a.export for a in scored])
    )
    spatial = np.array([a.question.kind == "spatial" for a in scored], bool)
    return TaskLeg(
        dataset=dataset,
        questions_sha256=questions_sha256,
        scoring=scoring,
        unscored=len(answered) - len(scored),
        base=_accuracy(base, spatial),
        scale=_accuracy(scale, spatial),
        export=_accuracy(export, spatial),
        agreement=agreement(answered, scoring),
        difference=paired_difference(scale, export),
        mcnemar_p=mcnemar_exact(scale, export),
        equivalent=equivalence(scale, export, limits.equivalence_margin),
        equivalent_spatial=equivalence(scale[spatial], export[spatial], limits.equivalence_margin),
        retention=gain_retention(base[spatial], scale[spatial], export[spatial]),
        limits=limits,
    )


def _accuracy(right: Bools, spatial: Bools) -> Accuracy:
    return Accuracy(
        all=proportion(right), spatial=proportion(right[spatial]), other=proportion(right[~spatial])
    )
