"""What was measured, and what was not: ``parity.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from scale_export.core.records import NotChecked

from .answers import ParityAnswers
from .attribution import Attribution
from .distributions import QuantizationLeg, RuntimeLeg
from .legs import FoldLeg, Leg, LoweringLeg, StorageLeg
from .preprocessing import PreprocessingLeg
from .stored_tensors import TensorsLeg
from .task import TaskLeg

KINDS: tuple[type[Leg], ...] = (
    FoldLeg,
    LoweringLeg,
    QuantizationLeg,
    RuntimeLeg,
    PreprocessingLeg,
    TaskLeg,
)
CHECKPOINT_KINDS: tuple[type[Leg], ...] = (TensorsLeg, StorageLeg)
"""What a folded checkpoint has beside them."""
LEGS = tuple(kind.name for kind in KINDS)
MEANINGS: Mapping[str, str] = {kind.name: kind.meaning for kind in (*KINDS, *CHECKPOINT_KINDS)}
"""Leg → what it compares with what."""
SCHEMA = 1
LOADED = "PyTorch in float32, loaded by transformers"
"""What the reference is, unless it is streamed or no model runs."""
Verdict = Literal["passed", "failed", "undecided", "no limit", "not checked"]


@dataclass(slots=True, kw_only=True)
class ParityReport:
    """What was measured, by what (``executed_by``), and against what (``reference``).

    A measurement fills it in, in place, leg by leg; everybody else reads it.

    A leg that did not run, or has not yet, is None.
    """

    executed_by: str
    reference: str = LOADED
    fold: FoldLeg | None = None
    lowering: LoweringLeg | None = None
    quantization: QuantizationLeg | None = None
    runtime: RuntimeLeg | None = None
    preprocessing: PreprocessingLeg | None = None
    task: TaskLeg | None = None
    tensors: TensorsLeg | None = None
    storage: StorageLeg | None = None
    answer_agreement: ParityAnswers | None = None
    attribution: Attribution | None = None
    not_checked: list[NotChecked] = field(default_factory=list)

    def skip(self, subject: str, reason: str) -> None:
        """Say that a leg did not run, or that something else was not looked at, and why."""
        self.not_checked.append(NotChecked(subject, reason))

    @property
    def legs(self) -> Mapping[str, Leg | None]:
        """Every leg by name in the order of the chain, those of checkpoints only where there is one."""
        kinds = (*KINDS, *CHECKPOINT_KINDS) if self.tensors else KINDS
        return {kind.name: getattr(self, kind.name) for kind in kinds}

    @property
    def checks(self) -> Mapping[str, Leg | None]:
        """The legs, and the answers to the parity prompts where there are any."""
        answers = self.answer_agreement
        return {**self.legs, answers.name: answers} if answers else self.legs

    @property
    def failed(self) -> list[str]:
        """The checks that are beyond their limits, or that nothing was decided of."""
        return [name for name, check in self.checks.items() if check and check.passed is False]

    @property
    def passed(self) -> bool:
        """Whether something was measured and nothing failed."""
        adds_up = self.attribution is None or self.attribution.passed is not False
        return not self.failed and adds_up and any(self.legs.values())

    def verdict(self, name: str) -> Verdict:
        """What came of a check, in words; answers of which nothing follows are as good as not checked."""
        check = self.checks[name]
        if check is None or (isinstance(check, ParityAnswers) and check.passed is None and check.undecided):
            return "not checked"
        if check.passed is None:
            return "no limit"
        if isinstance(check, QuantizationLeg | RuntimeLeg) and check.undecided:
            return "undecided"
        return "passed" if check.passed else "failed"

    def reason(self, leg: str) -> str:
        """Why a leg did not run, or part of it; empty where nothing was said."""
        return next((found.reason for found in self.not_checked if found.subject == leg), "")

    def figures(self) -> Mapping[str, float | None]:
        """What a requirement may name, of all that was measured."""
        lost = self.attribution
        found = [check.figures() for check in self.checks.values() if check]
        found += [lost.figures()] if lost else []
        return {name: value for figures in found for name, value in figures.items()}

    def to_json(self) -> dict[str, object]:
        """The object that ``parity.json`` holds."""
        agreed, lost = self.answer_agreement, self.attribution
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "executed_by": self.executed_by,
            "reference": self.reference,
            "legs": {name: leg.to_json() if leg else None for name, leg in self.legs.items()},
            "answer_agreement": agreed.to_json() if agreed else None,
            "attribution": lost.to_json() if lost else None,
            "not_checked": [str(found) for found in self.not_checked],
        }
