"""The last slots of a package's context, filled token by token: masks, cache slots and chunks that end early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.backends.coreml.backend import BACKEND as coreml
from scale_export.core.compare import relative_error
from scale_export.core.errors import ContextFull, UserError
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.core.words import FoldMode
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.coreml.host import read_host_config, write_host_config
from scale_export.device.engine import Step
from scale_export.device.generation import Generator
from scale_export.model.folding import FoldedDecoder, fold
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import emission_of, generator, reference

CONTEXT = 128
"""Of which prefill takes 64 at once."""


Made = tuple[Plan, FoldedDecoder, dict[str, Path]]


@pytest.fixture
def made(base_of: Any, tmp_path: Path) -> Callable[[str, str, FoldMode], Made]:
    """``made(family, variant, mode)``: Core ML graphs of a short context."""

    def build(family: str, variant: str, mode: FoldMode) -> Made:
        base = base_of(family, variant)
        options = ExportOptions(precision="float16", fold=mode)
        plan = make_plan(random_coefficients(base), base, load_target("coreml"), options)
        folded = fold(base.weights, plan.coefficients, mode)
        chosen = emission_of(
            plan, folded, precision="float32", vision_precision="float32", context_length=CONTEXT
        )
        return plan, folded, {role: tmp_path / name for role, name in coreml.emit(chosen, tmp_path).items()}

    return build


def step(hidden: int, start: int, stop: int, groups: Sequence[range], *, gated: bool) -> Step:
    """Tokens of a made-up conversation, of which each of ``groups`` sees its own."""
    rows = np.random.default_rng(5).standard_normal((CONTEXT + 1, hidden)).astype(np.float32)
    group = np.full(CONTEXT + 1, -1, np.int64)
    for number, places in enumerate(groups):
        group[places.start : places.stop] = number
    return Step(
        inputs_embeds=rows[None, start:stop],
        lengths=np.array([stop - start]),
        position_ids=np.arange(start, stop)[None],
        gated=gated,
        attention_group=group[None, start:stop],
    )


def filled(asked: Generator, hidden: int, turns: Sequence[int], groups: Sequence[range]) -> list[Float32]:
    """Logits after every gated forward, as a prompt in ``turns`` and then tokens fill the context."""
    cache, start, found = asked.engine.new_cache(1), 0, []
    for stop in (*turns, *range(turns[-1] + 1, CONTEXT + 1)):
        more = stop < turns[-1]  # a chunk that another one follows
        two_phase = asked.fold == "two-phase"
        split = stop if more else stop - 1 if two_phase else start
        if split > start:
            asked.forward(cache, step(hidden, start, split, groups, gated=False))
        if not more:
            found.append(asked.forward(cache, step(hidden, split, stop, groups, gated=True)))
        start = stop
    if isinstance(asked.engine, CoreMLEngine):
        with pytest.raises(ContextFull):
            asked.forward(cache, step(hidden, CONTEXT, CONTEXT + 1, (), gated=True))
    return found


PICTURES = (range(60, 72), range(116, 125))
"""Across the ends of two chunks, the second of them in the last slots."""


TURNS = ((126,), (10, 126), (72, 115, 127))
"""Where the chunks of a prompt end."""


def held(made: Made, turns: tuple[int, ...], groups: Sequence[range]) -> None:
    """That a package gives what the portable decoder gives, to the last slot."""
    plan, folded, graphs = made
    hidden = plan.base.spec.hidden_size
    expected = filled(reference(plan, folded), hidden, turns, groups)
    found = filled(generator(CoreMLEngine(graphs, strict=True), plan.base, plan.fold), hidden, turns, groups)
    assert len(found) == CONTEXT - turns[-1] + 1
    for e, f in zip(expected, found, strict=True):
        assert relative_error(e, f) <= LOWERING_RELATIVE["float32"], turns


@pytest.mark.parametrize("mode", ["gate", "two-phase"])
def test_core_ml_to_the_last_slot_where_tokens_see_their_picture(made: Any, mode: FoldMode):
    package = made("gemma3", "own", mode)
    for turns in TURNS:
        held(package, turns, PICTURES)
    runtime = package[2]["runtime"]
    write_host_config(read_host_config(runtime).model_copy(update={"cache_slots": CONTEXT}), runtime)
    refused = "export the package again" if mode == "two-phase" else "see one another"
    with pytest.raises(UserError, match=refused):  # as packages of 0.2 are
        held(package, TURNS[0], PICTURES)


def test_core_ml_two_phases_whose_chunks_begin_anywhere(made: Any):
    package = made("llava", "mistral-window", "two-phase")
    for turns in TURNS:
        held(package, turns, ())


def test_core_ml_without_a_chunk_for_the_last_slots(made: Any):
    package = made("llava", "mistral-window", "gate")
    assert read_host_config(package[2]["runtime"]).cache_slots == CONTEXT
    for turns in TURNS:
        held(package, turns, ())
