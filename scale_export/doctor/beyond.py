"""What one prompt doesn't reach: the end of the context, and everything else that ``verify`` looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scale_export.core.compare import relative_error, worst_of
from scale_export.core.progress import WorkLog
from scale_export.device.generation import Generator
from scale_export.device.package import Package
from scale_export.device.selftest import CASES, run_selftest
from scale_export.package.manifest import PackageFiles
from scale_export.plan.record import Plan
from scale_export.plan.weights import PlannedWeights
from scale_export.proof.again import measure_again
from scale_export.proof.cases import Case
from scale_export.proof.last_slots import MOST_BYTES, POSITIONS, LastSlots

from .stages import Stage


def worst_case(cases: Sequence[Case], expected: Generator, found: Generator) -> Case:
    """The case whose logits depart most; the first of those that depart alike."""
    errors = []
    for case in cases:
        sides = (generator.forced_logits(case.inputs, case.tokens) for generator in (expected, found))
        errors.append(worst_of([relative_error(*sides)]))
    return cases[int(np.argmax(errors))]


def end_of_context(plan: Plan, expected: Generator, found: Generator, limit: float) -> Stage | None:
    """The last slots of the context, and every position; None where its caches are too large to look at."""
    case = LastSlots(spec=plan.base.spec, context_length=plan.context_length)
    if case.cache_bytes > MOST_BYTES:
        return None
    errors = case.errors(expected, found, limit)
    worst = max(errors, key=lambda error: error.value)
    if all(error.passed for error in errors):
        place, words = None, "the last slots of the context are right, and the turns of every position"
    elif any(error.metric == POSITIONS and not error.passed for error in errors):
        place, words = "rotary tables", "some positions are turned otherwise than the base model turns them"
    else:
        place = "the cache and its masks"
        words = "in the last slots of the context logits depart, and in short prompts they don't"
    return Stage(
        name="end of the context",
        passed=place is None,
        value=worst.finite,
        limit=limit,
        place=place,
        words=words,
    )


def verified(
    files: PackageFiles, plan: Plan, weights: PlannedWeights, failed: Sequence[str], log: WorkLog
) -> Stage:
    """All that ``verify`` looks at without an evaluation set, for an export in which no stage found a fault.

    ``failed`` are the checks that failed when it was exported.
    """
    report, contents = measure_again(files, plan, weights, log)
    wrong = [*report.failed, *map(str, contents.wrong)]
    if not report.passed and not wrong:
        wrong.append("attribution")
    if files.manifest.holds(CASES):
        with log.stage("self-test"):
            wrong += [] if run_selftest(Package(files)).passed else ["self-test"]
    before = [name for name in failed if name not in wrong]
    words = "verify passes: every leg without an evaluation set, the self-test, and what the package states"
    if wrong:
        words = f"verify fails, and no stage above shows where: {'; '.join(wrong)}"
    elif before:
        words = f"the export failed in {', '.join(before)}, and no stage above shows why"
    return Stage(name="verify", passed=not (wrong or before), words=words)
