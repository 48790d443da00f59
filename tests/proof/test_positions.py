"""Which positions of a case are counted: an answer's for distributions, every one for errors; and what breaks each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.coefficients.file import load_coefficients
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.device.rules import GenerationRules
from scale_export.model.base import open_base
from scale_export.plan.make import ExportOptions, make_plan
from scale_export.plan.targets import ParityLimits, load_target
from scale_export.proof.attribution import attribution
from scale_export.proof.cases import ANSWER_POSITIONS, Case, Prompt
from scale_export.proof.distributions import quantization_leg, runtime_leg
from scale_export.proof.legs import (
    answer_logits,
    fold_leg,
    largest_error,
    lowering_leg,
)
from scale_export.proof.measure import Measurement
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import weights_of

END, VOCABULARY = 3, 9
LIMITS = ParityLimits(
    max_kl=0.02,
    min_top1_agreement=0.95,
    runtime_max_kl=0.02,
    runtime_min_top1_agreement=0.95,
    near_tie_budget=0,
)
TINY = Path(__file__).parents[2] / "examples/tiny_vlm/spatial.safetensors"


def case_of(path: Sequence[int], ends: frozenset[int] = frozenset({END})) -> Case:
    """A case whose best tokens are ``path``."""
    rows = np.random.default_rng(len(path)).uniform(-1, 1, (len(path), VOCABULARY)).astype(np.float32)
    rows[np.arange(len(path)), path] = 4
    tokens = tuple(int(token) for token in path[:-1])
    prompt = Prompt(name="case", images=(), text="where ?")
    return Case(
        prompt=prompt, inputs={}, tokens=tokens, logits=rows, rules=GenerationRules(end_tokens=tuple(ends))
    )


CASES = (case_of([5, END, 7, END, 1]), case_of([5, 2, 6, 7, 1]), case_of([END, 1, 1, 1, 1]))
"""Answers of two positions, of all five since none ends, and of one."""


def moved(at: int, position: int) -> list[Float32]:
    """The reference's own logits, with another best token at one position of one case."""
    rows = [case.logits.copy() for case in CASES]
    rows[at][position] = rows[at][position, ::-1]
    assert rows[at][position].argmax() != CASES[at].logits[position].argmax()
    return rows


@pytest.mark.parametrize(
    ("path", "ends", "positions"),
    [
        ([5, END, 7, END, 1], {END}, 2),
        ([END, 1, 1], {END}, 1),
        ([5, 2, END], {END}, 3),
        ([5, 2, 6], {END}, 3),
        ([5, 2, END], set(), 3),
        ([5, 8, END], {END, 8}, 2),
    ],
)
def test_an_answer_ends_with_the_position_that_predicts_its_end_token(
    path: list[int], ends: set[int], positions: int
) -> None:
    case = case_of(path, frozenset(ends))
    assert case.answer_positions == positions
    np.testing.assert_array_equal(answer_logits([case], [case.logits]), case.logits[:positions])


@pytest.mark.parametrize(
    ("at", "position", "counted"),
    [
        (0, 0, True),
        (0, 1, True),  # predicts the end token
        (0, 2, False),
        (0, 3, False),  # behind the first end token, a second one is no end
        (0, 4, False),
        (1, 4, True),  # of a path without an end token every position counts
        (2, 0, True),
        (2, 1, False),
    ],
)
def test_distributions_differ_by_what_answers_are_made_of_and_errors_by_everything(
    at: int, position: int, counted: bool
) -> None:
    exact, broken = [case.logits for case in CASES], moved(at, position)
    for leg in (
        quantization_leg(CASES, exact, broken, LIMITS, {}, by_value=True),
        runtime_leg(CASES, exact, broken, LIMITS, by_value=True),
        quantization_leg(CASES, broken, exact, LIMITS, {}, by_value=True),  # whichever side it is on
    ):
        found = leg.divergence
        assert (leg.cases, found.positions) == (3, 2 + 5 + 1)
        assert leg.to_json()["steps"] == found.positions
        assert (found.kl > 0.1) == (found.top1_agreement < 1) == (leg.passed is False) == counted
        assert counted or found.kl == 0

    lost = attribution(CASES, [("fold", exact), ("quantization", broken)])
    assert lost.positions == lost.to_json()["steps"] == 8 and lost.passed is True
    assert lost.whole.kl is not None
    assert (lost.whole.kl > 0.1) == (lost.whole.top1_changed > 0) == counted

    for error in (
        fold_leg(CASES, broken).error,
        lowering_leg(exact, broken, "float32").error,
        largest_error(exact, broken, 1e-2),
    ):
        assert error.passed is False and error.value > 0.1


def test_a_candidate_that_ends_early_is_still_counted_to_the_references_end() -> None:
    """Its own end token would leave the one position that it got wrong as the only one, or hide those behind it."""
    early = [case.logits.copy() for case in CASES]
    for rows in early:
        rows[0, END] = 9
    leg = quantization_leg(CASES, [case.logits for case in CASES], early, LIMITS, {}, by_value=True)
    assert leg.divergence.positions == 8 and leg.divergence.top1_agreement == 6 / 8
    assert leg.passed is False


def test_the_bases_end_tokens_reach_the_cases(base_of: Any) -> None:
    """The shipped model answers in a word or two, or not at all without a picture; a random one goes on and on."""
    tiny = load_coefficients(TINY)

    def cases(coefficients: Any, base: Any) -> list[Case]:
        plan = make_plan(coefficients, base, load_target("cpu"), ExportOptions(precision="float32"))
        asked = Measurement(
            plan=plan, weights=weights_of(plan), directory=base.directory, graphs={}, log=WorkLog(quiet=True)
        )
        return asked.reference_paths()

    trained = cases(tiny, open_base(tiny.base.base_model, relative_to=TINY.parent))
    counted = [case.answer_positions for case in trained]
    assert sum(counted) < sum(len(case.logits) for case in trained) / 2
    assert sum(counted) >= ANSWER_POSITIONS > sum(counted[:-1]), "no question more than it takes"
    assert len({case.prompt.name for case in trained}) == len(trained)
    for case in trained:
        assert len(case.logits) == len(case.tokens) + 1 == 5 > case.answer_positions
        assert case.tokens[case.answer_positions - 1] in case.rules.end_tokens
        assert not set(case.tokens[: case.answer_positions - 1]) & {*case.rules.end_tokens}
        assert replace(case, rules=GenerationRules()).answer_positions == 5

    base = base_of("llava", "llama")
    untrained = cases(random_coefficients(base), base)
    assert sum(len(case.logits) for case in untrained) == ANSWER_POSITIONS, (
        "what the parity prompts have anyway"
    )
    for case in untrained:
        assert case.rules.end_tokens and not {*case.rules.end_tokens} & {*case.logits.argmax(-1).tolist()}
        assert case.answer_positions == len(case.logits)
