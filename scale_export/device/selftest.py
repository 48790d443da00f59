"""Golden cases inside a package: a device checks itself without the base model and without torch.

Cases at other strengths than 1 tell a runtime that drops the gate: it answers them like the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from safetensors.numpy import load_file

from scale_export.core import limits
from scale_export.core.compare import LargestError, relative_error, worst_of
from scale_export.core.errors import UserError
from scale_export.core.records import Array, Float32
from scale_export.core.words import Precision

from .package import Package
from .pixels import levels_per_unit, picture_inputs, pixel_levels

FOLDER = "selftest"
CASES = f"{FOLDER}/cases.json"
EXPECTED = f"{FOLDER}/expected.safetensors"
PIXELS = f"{FOLDER}/pixels.safetensors"
SCHEMA = 2
COUNT = 4
STRENGTHS = (0.0, 0.5)
"""At which the first case is asked again, where scalars are inputs."""
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
        strength: of the scalars: 1 as trained, 0 the base model.
        pixels: what the names of its arrays in ``PIXELS`` begin with; None of a prompt without picture.
    """

    name: str
    images: tuple[str, ...]
    prompt: str
    input_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    answer: str | None
    strength: float
    pixels: str | None

    def beside(self, others: Sequence[GoldenCase]) -> int | None:
        """The index of the case of full strength that is this one else; None of one that has full strength."""
        own = (tuple(self.images), self.prompt, tuple(self.tokens))
        same = (
            index
            for index, other in enumerate(others)
            if other.strength == 1 and (tuple(other.images), other.prompt, tuple(other.tokens)) == own
        )
        return None if self.strength == 1 else next(same, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What one golden case came to.

    Attributes:
        error: of its logits against the recorded ones; None where they can't be compared.
        pixel_levels: the largest difference of a pixel; None without picture or where it can't be compared.
        gate_response: see ``gate_response``; None of full strength, or where strengths are too close to tell.
        answer: None where none was recorded.
    """

    index: int
    name: str
    strength: float
    ids_identical: bool
    error: float | None
    pixel_levels: float | None
    gate_response: float | None
    answer: str | None
    answer_expected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestResult:
    """What a package's own golden cases came to on this machine.

    Attributes:
        error: against the logits that were recorded at export; infinite where some prompt has other token ids,
            some logits have another shape or are not finite, or there is no case.
        pixels: against the recorded pixel values; None where no case has a picture.
        results: case by case.
    """

    error: LargestError
    pixels: LargestError | None
    results: tuple[CaseResult, ...]

    @property
    def cases(self) -> int:
        """How many there are."""
        return len(self.results)

    @property
    def ids_identical(self) -> bool:
        """Whether every prompt has the recorded token ids."""
        return all(result.ids_identical for result in self.results)

    @property
    def answers_as_pytorch(self) -> int | None:
        """How many answers are PyTorch ScAle's; None where none was recorded. No limit holds them."""
        asked = [result for result in self.results if result.answer_expected is not None]
        return sum(result.answer == result.answer_expected for result in asked) if asked else None

    @property
    def gate_responses(self) -> tuple[float, ...]:
        """Of the cases that tell whether the gate acts."""
        return tuple(result.gate_response for result in self.results if result.gate_response is not None)

    @property
    def gate_acts(self) -> bool | None:
        """Whether logits move with the strength as they did at export; None where no case tells."""
        least, most = limits.GATE_RESPONSE
        found = self.gate_responses
        return all(least <= response <= most for response in found) if found else None

    @property
    def passed(self) -> bool:
        """Whether there are cases, each with the recorded ids, pixels, and logits within the recorded tolerance."""
        right = self.ids_identical and self.error.passed and self.gate_acts is not False
        return self.cases > 0 and right and (self.pixels is None or self.pixels.passed)

    def to_json(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        return {
            **self.error.to_json(),
            "cases": self.cases,
            "ids_identical": self.ids_identical,
            "pixel_levels": self.pixels and self.pixels.finite,
            "gate_responses": list(self.gate_responses),
            "answers_as_pytorch": self.answers_as_pytorch,
            "results": [asdict(result) for result in self.results],
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


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a package's self-test holds; its parts name one another."""

    tolerance: float
    cases: tuple[GoldenCase, ...]
    logits: Mapping[str, Array]
    pixels: Mapping[str, Array]

    @classmethod
    def read(cls, package: Package) -> Golden:
        """The self-test of an opened package.

        Raises:
            UserError: it can't be read, or claims a wider tolerance than its precision may have.
        """
        with package.refusing("its self-test cannot be read"):
            table = json.loads(package.files.path(CASES).read_text(encoding="utf-8"))
            if table["schema"] != SCHEMA:
                raise ValueError(f"it does not follow schema {SCHEMA}")
            claimed = table["tolerance"]
            cases = tuple(GoldenCase(**case) for case in table["cases"])
            logits, pixels = (load_file(package.files.path(name)) for name in (EXPECTED, PIXELS))
        tolerance = allowed_tolerance(claimed, package.files.manifest.precision)
        return cls(tolerance=tolerance, cases=cases, logits=logits, pixels=pixels)

    def expected(self, index: int) -> Float32:
        """The recorded logits of a case."""
        logits: Float32 = self.logits[str(index)]
        return logits

    def pictures(self, case: GoldenCase) -> dict[str, Array]:
        """What a processor makes of the case's pictures."""
        begins = f"{case.pixels}."
        return {n.removeprefix(begins): v for n, v in self.pixels.items() if n.startswith(begins)}

    def tells_the_gate(self, index: int) -> bool:
        """Whether a case's logits are far enough from those of full strength to tell whether a gate acts."""
        full = self.cases[index].beside(self.cases)
        if full is None:
            return False
        pair = self.expected(full), self.expected(index)
        return gate_response(pair, pair, self.tolerance) is not None


def run_selftest(package: Package) -> SelftestResult:
    """Ask the package its own golden cases on this machine.

    Raises:
        UserError: it claims a wider tolerance than its precision may have.
    """
    golden, strength = Golden.read(package), package.scale
    found: list[Float32 | None] = []
    results = []
    try:
        with package.refusing("its self-test cannot be run"):
            for index, case in enumerate(golden.cases):
                result, logits = _ask(package, golden, index, case, found)
                results.append(result)
                found.append(logits)
    finally:
        package.scale = strength
    levels = [result.pixel_levels for result, case in zip(results, golden.cases, strict=True) if case.pixels]
    return SelftestResult(
        error=LargestError(
            metric="max |Δlogit| / max |logit| against the logits recorded at export",
            value=worst_of([_number(result.error) for result in results]),
            limit=golden.tolerance,
        ),
        pixels=LargestError(
            metric="8-bit levels of a pixel against those recorded at export",
            value=worst_of([_number(found) for found in levels]),
            limit=limits.PIXEL_LEVELS,
        )
        if levels
        else None,
        results=tuple(results),
    )


def _ask(
    package: Package, golden: Golden, index: int, case: GoldenCase, before: Sequence[Float32 | None]
) -> tuple[CaseResult, Float32 | None]:
    """One case, after those ``before``; its logits, None where the prompt has other token ids."""
    if package.scale != case.strength:
        package.scale = case.strength
    images = [package.files.path(f"{FOLDER}/{name}") for name in case.images]
    inputs = package.prepare(images, case.prompt)
    same = inputs["input_ids"][0].tolist() == list(case.input_ids)
    with package.bounded("its self-test", len(case.input_ids) + len(case.tokens)):
        logits = package.generator.forced_logits(inputs, case.tokens) if same else None
    levels = response = answer = None
    if case.pixels is not None:
        unit = levels_per_unit(package.processor)
        levels = pixel_levels(golden.pictures(case), picture_inputs(inputs), unit)
    full = case.beside(golden.cases)
    if full is not None and full < index and logits is not None:
        expected = golden.expected(full), golden.expected(index)
        response = gate_response(expected, (before[full], logits), golden.tolerance)
    if case.answer is not None:
        answer = package.responder.answer(images, case.prompt, max_new_tokens=MAX_NEW_TOKENS)
    error = _error(golden.expected(index), logits)
    result = CaseResult(
        index=index,
        name=case.name,
        strength=case.strength,
        ids_identical=same,
        error=error if np.isfinite(error) else None,
        pixel_levels=None if levels is None or not np.isfinite(levels) else levels,
        gate_response=response,
        answer=answer,
        answer_expected=case.answer,
    )
    return result, logits


def gate_response(
    expected: tuple[Float32, Float32], found: tuple[Float32 | None, Float32 | None], tolerance: float
) -> float | None:
    """How far logits moved between two strengths, as a share of how far they moved at export, along the same way.

    Both pairs are of full strength first, ``[positions, V]`` each. None where the expected ones are too close for
    kernels of that ``tolerance``, or the found ones can't be compared.
    """
    full, weaker = expected
    parts = [part for part in (*expected, *found) if part is not None]
    alike = len(parts) == 4 and all(part.shape == full.shape for part in parts)
    if not alike or not all(np.isfinite(part).all() for part in parts):
        return None
    apart = relative_error(full, weaker)
    if not apart > limits.GATE_TOLD_APART * tolerance:
        return None
    before, after = (part.astype(np.float64) for part in parts[2:])
    due, own = full.astype(np.float64) - weaker, before - after
    return float((own * due).sum() / (due * due).sum())


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _error(expected: Float32, logits: Float32 | None) -> float:
    """Of one case's logits ``[positions, V]``; infinite where there are none, or of another shape."""
    if logits is None or logits.shape != expected.shape:
        return float("inf")
    return relative_error(expected, logits)
