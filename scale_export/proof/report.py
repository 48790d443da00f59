"""What was measured, and what was not: ``parity.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scale_export.core.compare import Leg

LEGS = ("fold", "lowering", "quantization", "runtime", "preprocessing", "task")
CHECKPOINT_LEGS = ("tensors", "storage")
"""What a folded checkpoint has beside them."""
SCHEMA = 1


@dataclass(kw_only=True)
class ParityReport:
    """What was measured so far, and by what; ``to_json`` is ``parity.json``."""

    executed_by: str
    legs: dict[str, Leg | None] = field(default_factory=lambda: dict.fromkeys(LEGS))
    not_checked: list[str] = field(default_factory=list)
    answer_agreement: Leg | None = None
    attribution: Leg | None = None

    def skip(self, leg: str, reason: str) -> None:
        """Say that a leg did not run, and why."""
        self.not_checked.append(f"{leg}: {reason}")

    @property
    def failed(self) -> list[str]:
        """The legs beyond their limits."""
        return [name for name, leg in self.legs.items() if leg and leg["passed"] is False]

    @property
    def passed(self) -> bool:
        """Whether something was measured and nothing failed."""
        adds_up = self.attribution is None or self.attribution["passed"] is not False
        return not self.failed and adds_up and any(self.legs.values())

    def to_json(self) -> dict[str, Any]:
        """The object that ``parity.json`` holds."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "executed_by": self.executed_by,
            "legs": self.legs,
            "answer_agreement": self.answer_agreement,
            "attribution": self.attribution,
            "not_checked": self.not_checked,
        }
