"""What is shipped, as it runs on this machine: one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scale_export.core.records import Float32
from scale_export.device.engine import Scalars
from scale_export.device.generation import Inputs
from scale_export.device.package import Responder
from scale_export.device.prompts import conversation
from scale_export.device.selftest import MAX_NEW_TOKENS
from scale_export.questions.question import Question

from .cases import Case
from .paths import path_logits
from .preprocessing import same_inputs


class Candidate(Protocol):
    """What is shipped, as it runs on this machine."""

    @property
    def executed_by(self) -> str:
        """What computes, in words."""
        ...

    def logits(self, cases: Sequence[Case]) -> list[Float32]:
        """Its logits along every case's path, each ``[positions, V]``."""
        ...

    def answer(self, question: Question) -> str:
        """Its greedy answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class GraphCandidate:
    """A package's graphs behind an engine, with the package's own processor."""

    responder: Responder
    trained: Scalars

    @property
    def executed_by(self) -> str:
        return self.responder.generator.engine.executed_by

    def logits(self, cases: Sequence[Case]) -> list[Float32]:
        return path_logits(self.responder.generator, cases)

    def logits_at(self, strength: float, case: Case) -> Float32:
        """Its logits along a case's path with its scalars at that strength; only where they are inputs."""
        weaker = replace(self.responder.generator, scalars=self.trained.at(strength))
        return weaker.forced_logits(case.inputs, case.tokens)

    def answer(self, question: Question) -> str:
        return self.responder.reply(conversation(question), max_new_tokens=MAX_NEW_TOKENS)


def prepared_logits(
    candidate: Candidate, cases: Sequence[Case], prepared: Sequence[Inputs], shipped: Sequence[Float32]
) -> list[Float32]:
    """The candidate's logits on what its own processor prepares; ``shipped`` where that is the reference's input."""
    return [
        logits if same_inputs(case.inputs, inputs) else candidate.logits([replace(case, inputs=inputs)])[0]
        for case, inputs, logits in zip(cases, prepared, shipped, strict=True)
    ]
