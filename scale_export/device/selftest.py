"""Golden cases inside a package: a device checks itself without the base model and without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from safetensors.numpy import load_file

from scale_export.core import limits
from scale_export.core.compare import LargestError, relative_error, worst_of
from scale_export.core.errors import UserError
from scale_export.core.records import Float32
from scale_export.core.words import Precision

from .package import Package

FOLDER = "selftest"
CASES = f"{FOLDER}/cases.json"
EXPECTED = f"{FOLDER}/expected.safetensors"
COUNT = 4
MAX_NEW_TOKENS = 16
"""Of an answer that is compared with PyTorch ScAle's, here as at export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """One case of ``cases.json``.

    Attributes:
        images: names of the pictures' files, in ``FOLDER``.
        input_ids: what a processor makes of the prompt.
        tokens: the reference's greedy tokens, which every engine is fed.
        answer: the reference's; None where it was not asked for any.
    """

    name: str
    images: tuple[str, ...]
    prompt: str
    input_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestResult:
    """What a package's own golden cases came to on this machine.

    Attributes:
        error: against the logits that were recorded at export; infinite where some prompt has other token ids,
            some logits have another shape or are not finite, or there is no case.
        answers_as_pytorch: how many answers are PyTorch ScAle's; None where none was recorded. No limit holds them.
    """

    error: LargestError
    cases: int
    ids_identical: bool
    answers_as_pytorch: int | None

    @property
    def passed(self) -> bool:
        """Whether there are cases, each with the recorded token ids and with logits within the recorded tolerance."""
        return self.cases > 0 and self.ids_identical and self.error.passed

    def to_json(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        return {
            **self.error.to_json(),
            "cases": self.cases,
            "ids_identical": self.ids_identical,
            "answers_as_pytorch": self.answers_as_pytorch,
            "passed": self.passed,
        }


def allowed_tolerance(claimed: object, precision: Precision) -> float:
    """The tolerance that a package's self-test states, where ``limits.SELFTEST_RELATIVE`` allows as much.

    Raises:
        UserError: a wider one, or none that is a number.
    """
    ceiling = limits.SELFTEST_RELATIVE.get(precision, 0.0)
    if isinstance(claimed, int | float) and 0 <= claimed <= ceiling:
        return claimed
    raise UserError(
        f"the package's self-test states the tolerance {claimed!r}, and {precision} weights may have "
        f"{ceiling:g} at most: do not trust the package, or export it again"
    )


def run_selftest(package: Package) -> SelftestResult:
    """Ask the package its own golden cases on this machine.

    Raises:
        UserError: it claims a wider tolerance than its precision may have.
    """
    with package.refusing("its self-test cannot be read"):
        table = json.loads(package.files.path(CASES).read_text(encoding="utf-8"))
        claimed, cases = table["tolerance"], [GoldenCase(**case) for case in table["cases"]]
        expected = load_file(package.files.path(EXPECTED))
    limit = allowed_tolerance(claimed, package.files.manifest.precision)
    errors, same, answers = [], [], []
    with package.refusing("its self-test cannot be run"):
        for index, case in enumerate(cases):
            images = [package.files.path(f"{FOLDER}/{name}") for name in case.images]
            inputs = package.prepare(images, case.prompt)
            same.append(inputs["input_ids"][0].tolist() == list(case.input_ids))
            logits = package.generator.forced_logits(inputs, case.tokens) if same[-1] else None
            errors.append(_error(expected[str(index)], logits))
            if case.answer is not None:
                answers.append(
                    package.answer(images, case.prompt, max_new_tokens=MAX_NEW_TOKENS) == case.answer
                )
    return SelftestResult(
        error=LargestError(
            metric="max |Δlogit| / max |logit| against the logits recorded at export",
            value=worst_of(errors),
            limit=limit,
        ),
        cases=len(cases),
        ids_identical=all(same),
        answers_as_pytorch=sum(answers) if answers else None,
    )


def _error(expected: Float32, logits: Float32 | None) -> float:
    """Of one case's logits ``[positions, V]``; infinite where there are none, or of another shape."""
    if logits is None or logits.shape != expected.shape:
        return float("inf")
    return relative_error(expected, logits)
