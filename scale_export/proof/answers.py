"""The same questions to the base model, PyTorch ScAle and the export, and how often the last two say the same.

On the parity prompts that is a gate. An answer of n tokens is the same only where n best tokens are, so the least share
is what the target's limits on positions leave of n of them, and never more than its ``min_answer_agreement``. Float
weights have no limits on positions: theirs is ``min_answer_agreement``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import ClassVar

from scale_export.coefficients.file import Coefficients
from scale_export.core.defaults import SCORING
from scale_export.core.huggingface import Model, Processor
from scale_export.core.limits import DECIDED_ODDS, NEAR_TIE_MARGIN
from scale_export.core.words import Scoring
from scale_export.device.selftest import MAX_NEW_TOKENS
from scale_export.model.asking import Answer, answer_questions
from scale_export.model.hooks import attach
from scale_export.plan.targets import ParityLimits
from scale_export.questions.question import Question
from scale_export.questions.scoring import is_right, normalise

from .numbers import number
from .rows import Row, at_least

MAX_LISTED = 100
"""How many differing answers a report lists; their count is always the whole one."""
AskExport = Callable[[Question], str]
Advance = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question with the three answers, and what PyTorch ScAle's own is like.

    Attributes:
        base: None where the base model was not asked.
        near_tie: whether some token hung on a margin too small to hold any export to.
        decided: whether every token was decided (``core.limits.DECIDED_ODDS``).
        tokens: how many there are.
    """

    question: Question
    base: str | None
    scale: str
    export: str
    near_tie: bool
    decided: bool
    tokens: int

    @property
    def agrees(self) -> bool:
        """Whether the export says what PyTorch ScAle says."""
        return normalise(self.scale) == normalise(self.export)

    @property
    def of_base(self) -> str:
        """The base model's answer, which was asked."""
        assert self.base is not None, "the base model is asked where its answer is told"
        return self.base


def ask_all(
    model: Model,
    processor: Processor,
    coefficients: Coefficients,
    ask_export: AskExport,
    questions: Sequence[Question],
    advance: Advance,
    *,
    base_too: bool = True,
) -> list[Answered]:
    """Ask all three; the references in batches, the export one question at a time as a device does.

    Without ``base_too`` the base model is asked only where the others differ, as far as such answers are listed.
    """
    with attach(model, coefficients):
        scale = _reference_answers(model, processor, questions, lambda n, of: advance("PyTorch ScAle", n, of))
    answered = []
    for index, (question, said) in enumerate(zip(questions, scale, strict=True)):
        answered.append(
            Answered(
                question=question,
                base=None,
                scale=said.text,
                export=ask_export(question),
                near_tie=is_near_tie(said),
                decided=bool((said.margins >= math.log(DECIDED_ODDS)).all()),
                tokens=len(said.token_ids),
            )
        )
        advance("export", index + 1, len(questions))
    due = [index for index, found in enumerate(answered) if base_too or not found.agrees]
    due = due if base_too else due[:MAX_LISTED]
    asked = [questions[index] for index in due]
    base = _reference_answers(model, processor, asked, lambda n, of: advance("base", n, of))
    for index, answer in zip(due, base, strict=True):
        answered[index] = replace(answered[index], base=answer.text)
    return answered


def _reference_answers(
    model: Model, processor: Processor, questions: Sequence[Question], progress: Callable[[int, int], None]
) -> list[Answer]:
    return answer_questions(model, processor, questions, max_new_tokens=MAX_NEW_TOKENS, progress=progress)


def is_near_tie(reference: Answer) -> bool:
    """Whether some step of the reference's answer hung on a margin too small to hold any export to."""
    return bool((reference.margins < NEAR_TIE_MARGIN * reference.peaks).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Whether each of the three is right; None where the scoring has no rule for the question."""

    base: bool | None
    scale: bool | None
    export: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A question that the export answered in another way than PyTorch ScAle.

    ``truth`` and ``right`` are None where the true answer is not known.
    """

    id: str
    prompt: str
    truth: str | None
    base: str
    scale: str
    export: str
    right: Verdicts | None
    near_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How often the export's answer is PyTorch ScAle's, and where not; any model has it, no right answers needed.

    Attributes:
        share: of all cases; ``outside_near_ties`` of those alone that are no near-tie, ``where_decided`` of those whose
            tokens PyTorch ScAle was all decided about. None where there are none.
        near_ties, decided: how many cases are.
        differing: how many answers differ, of which the first ``MAX_LISTED`` are ``listed``.
    """

    cases: int
    share: float | None
    outside_near_ties: float | None
    where_decided: float | None
    near_ties: int
    decided: int
    differing: int
    listed: tuple[Difference, ...]

    def figures(self, name: str) -> Mapping[str, float | None]:
        """What a requirement may name."""
        return {name: self.outside_near_ties, f"{name}.decided": self.where_decided}

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``."""
        return {
            "cases": self.cases,
            "agreement": self.share,
            "agreement_outside_near_ties": self.outside_near_ties,
            "near_ties": self.near_ties,
            "agreement_where_decided": self.where_decided,
            "decided": self.decided,
            "differences": {"count": self.differing, "listed": [asdict(found) for found in self.listed]},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityAnswers(Agreement):
    """The agreement on the parity prompts, held to a limit.

    Attributes:
        limit: the least share of equal answers, near-ties aside; None where the target states none.
        various: whether PyTorch ScAle's answers, near-ties aside, differ from one another.
    """

    name: ClassVar = "answer agreement"
    meaning: ClassVar = "PyTorch ScAle's answers → the export's, on the parity prompts"

    limit: float | None
    various: bool

    @property
    def undecided(self) -> str | None:
        """Why equal answers would prove nothing; None where they would prove something."""
        if self.outside_near_ties is None:
            return "near-ties leave no answer to compare"
        if not self.various:
            return "PyTorch ScAle says the same to every prompt, and an export may say that for any reason"
        return None

    @property
    def passed(self) -> bool | None:
        """Whether enough answers are the same; None where there is no limit, or where nothing follows from it."""
        if (
            self.limit is not None
            and self.outside_near_ties is not None
            and self.outside_near_ties < self.limit
        ):
            return False
        return None if self.limit is None or self.undecided else True

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} prompts, {number(self.near_ties)} of them near-ties"

    def rows(self) -> Sequence[Row]:
        label, lost = "same answers, near-ties aside", "answers changed"
        return (at_least(self.name, label, self.outside_near_ties, self.limit, lost=lost),)

    def figures(self, name: str = "parity.agreement") -> Mapping[str, float | None]:
        """None where equal answers prove nothing."""
        shares = Agreement.figures(self, name)
        return {of: None if self.undecided else share for of, share in shares.items()}

    def to_json(self) -> dict[str, object]:
        held = {"limit": self.limit, "various": self.various, "passed": self.passed}
        return {**Agreement.to_json(self), **held}


def parity_answers(answered: Sequence[Answered], limits: ParityLimits) -> ParityAnswers:
    """The agreement of answers to the parity prompts, and its limit."""
    clear = [a for a in answered if not a.near_tie]
    found = agreement(answered)
    return ParityAnswers(
        **{part.name: getattr(found, part.name) for part in fields(found)},
        limit=answer_limit(limits, [a.tokens for a in clear]),
        various=len({normalise(a.scale) for a in clear}) > 1,
    )


def answer_limit(limits: ParityLimits, lengths: Sequence[int]) -> float | None:
    """The least share of equal answers among some of so many tokens each; None where no limit tells."""
    by_position = [p for p in (limits.min_top1_agreement, limits.runtime_min_top1_agreement) if p is not None]
    if not by_position or not lengths:
        return limits.min_answer_agreement
    implied = fmean(math.prod(by_position) ** length for length in lengths)
    stated = limits.min_answer_agreement
    return implied if stated is None else min(stated, implied)


def agreement(answered: Sequence[Answered], scoring: Scoring = SCORING) -> Agreement:
    """The agreement of those answers; ``scoring`` judges the listed ones."""
    clear = [a for a in answered if not a.near_tie]
    decided = [a for a in answered if a.decided]
    differing = [a for a in answered if not a.agrees]
    return Agreement(
        cases=len(answered),
        share=_share(answered),
        outside_near_ties=_share(clear),
        where_decided=_share(decided),
        near_ties=len(answered) - len(clear),
        decided=len(decided),
        differing=len(differing),
        listed=tuple(_difference(a, scoring) for a in differing[:MAX_LISTED]),
    )


def _share(answered: Sequence[Answered]) -> float | None:
    return sum(a.agrees for a in answered) / len(answered) if answered else None


def _difference(answered: Answered, scoring: Scoring) -> Difference:
    question = answered.question
    known = question.answer != ""
    verdicts = Verdicts(
        base=is_right(answered.of_base, question, scoring),
        scale=is_right(answered.scale, question, scoring),
        export=is_right(answered.export, question, scoring),
    )
    return Difference(
        id=question.id,
        prompt=question.prompt,
        truth=question.answer if known else None,
        base=answered.of_base,
        scale=answered.scale,
        export=answered.export,
        right=verdicts if known else None,
        near_tie=answered.near_tie,
    )
