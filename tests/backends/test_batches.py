"""Batches padded on the right, in chunks and over several turns: each row is what the hooked model gives it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scale_export.backends.coreai.backend import BACKEND as coreai
from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.core.compare import relative_error
from scale_export.core.errors import ContextFull
from scale_export.core.limits import FOLD_RELATIVE, LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.device.engine import Step
from scale_export.device.generation import Generator
from scale_export.device.onnxruntime.engine import DecoderSession, OnnxEngine, SharedCache
from tests.helpers.batches import asked_prompts, batched, hooked_row
from tests.helpers.emission import Emit, Emitted, decoder_session, emitting, generator, opened, reference
from tests.helpers.models import FAMILIES

CPU = ["CPUExecutionProvider"]
CONTEXT = 128
OWN_VARIANTS = {"mistral": "mistral-window"}
QUICK = ("gemma3", "llava", "mistral3", "paligemma", "qwen2_vl")
"""One family of each kind of attention."""

WAYS = (
    *(
        pytest.param((family, "own", "gate"), marks=[] if family in QUICK else pytest.mark.slow)
        for family in sorted(FAMILIES)
    ),
    *(
        (family, variant, "two-phase")
        for family, variant in (("llava", "ministral-mixed"), ("gemma3", "own"))
    ),
    pytest.param(("qwen2_vl", "own", "two-phase"), marks=pytest.mark.slow),
)
"""Family, text model, fold mode: each family with its own text model, and those with windows and several axes."""


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("cpu", backend, base_of, tmp_path_factory)


def emitted_way(emitted: Emit, family: str, variant: str, mode: str) -> Emitted:
    recipe = FAMILIES[family]
    if variant == "own" and not recipe.own_text:
        variant = OWN_VARIANTS.get(recipe.text, recipe.text)
    return emitted(family, variant, "float32", mode, "last")


def graph_of(made: Emitted) -> Generator:
    plan, _, graphs = made
    return generator(OnnxEngine(graphs, context_length=CONTEXT, providers=CPU), plan.base, plan.fold)


def worst(expected: Float32, found: Float32) -> float:
    """Of rows ``[rows, positions, V]``, each held to itself."""
    return max(relative_error(e, f) for e, f in zip(expected, found, strict=True))


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_every_row_is_the_hooked_models_alone(
    emitted: Emit, way: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
):
    made = emitted_way(emitted, *way)
    plan, folded, _ = made
    inputs = asked_prompts(plan.base)
    assert len({prompt["input_ids"].shape[1] for prompt in inputs}) > 1, "rows differ in length"
    windows = [window for window in plan.base.spec.sliding_windows if window]
    assert all(window < prompt["input_ids"].shape[1] for window in windows for prompt in inputs)
    expected = np.stack([hooked_row(plan, prompt, row) for row, prompt in enumerate(inputs)])
    for asked, limit in (
        (reference(plan, folded), FOLD_RELATIVE),
        (graph_of(made), LOWERING_RELATIVE["float32"]),
    ):
        for chunked in (False, True):
            assert worst(expected, batched(asked, inputs, chunked=chunked)) <= limit
    run = DecoderSession._run

    def after_the_longest(self: Any, cache: SharedCache, *args: Any) -> Float32:
        logits = run(self, cache, *args)
        cache.lengths[:] = cache.lengths.max()
        return logits

    monkeypatch.setattr(DecoderSession, "_run", after_the_longest)
    assert (
        worst(expected, batched(graph_of(made), inputs, chunked=False)) > 100 * LOWERING_RELATIVE["float32"]
    )


def test_core_ai_runs_every_row_alone(base_of: Any, tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("coreai_torch")
    plan, _, graphs = emitting("coreai", coreai, base_of, tmp_path_factory)("llava", "mistral-window")
    inputs = asked_prompts(plan.base)
    expected = np.stack([hooked_row(plan, prompt, row) for row, prompt in enumerate(inputs)])
    asked = generator(opened(coreai, graphs, plan), plan.base, plan.fold)
    assert worst(expected, batched(asked, inputs, chunked=False)) <= LOWERING_RELATIVE["float32"]


def test_a_chunk_that_does_not_fit_leaves_every_row_as_it_was(emitted: Emit):
    made = emitted_way(emitted, "llava", "own", "gate")
    plan, _, graphs = made
    decoder = decoder_session(graphs, 12)
    embeds = np.random.default_rng(0).standard_normal((2, 8, plan.base.spec.hidden_size)).astype(np.float32)

    def step(tokens: int, lengths: list[int], start: int) -> Step:
        return Step(
            inputs_embeds=embeds[:, :tokens],
            lengths=np.array(lengths),
            position_ids=np.tile(np.arange(start, start + tokens), (2, 1)),
        )

    cache = decoder.new_cache(2)
    decoder.forward(cache, step(8, [5, 8], 0), None)
    held = {name: buffer.copy() for name, buffer in cache.buffers.items()}
    with pytest.raises(ContextFull):
        decoder.forward(cache, step(5, [2, 5], 8), None)  # the first row alone would fit
    assert cache.lengths.tolist() == [5, 8]
    for name, buffer in cache.buffers.items():
        np.testing.assert_array_equal(buffer, held[name])


def test_the_graph_takes_several_rows_over_a_cache_one_token_at_a_time_only(emitted: Emit):
    """As the contract says; where a host does otherwise, the runtime refuses and nothing is answered."""
    made = emitted_way(emitted, "llava", "own", "gate")
    plan, _, graphs = made
    decoder = decoder_session(graphs, 32)
    step = Step(
        inputs_embeds=np.zeros((2, 3, plan.base.spec.hidden_size), np.float32),
        lengths=np.array([3, 3]),
        position_ids=np.tile(np.arange(3), (2, 1)),
    )
    cache = decoder.new_cache(2)
    decoder.forward(cache, step, None)
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        decoder._run(cache, step, None)


@pytest.mark.parametrize("lengths", [[0, 3], [4, 1], [3]])
def test_a_step_whose_lengths_are_none_of_its_own_is_refused(lengths: list[int]):
    with pytest.raises(ValueError, match="give one for each row, from 1 to 3"):
        Step(
            inputs_embeds=np.zeros((2, 3, 8), np.float32),
            lengths=np.array(lengths),
            position_ids=np.zeros((2, 3), np.int64),
        )
