"""Cases that run together give what each gives alone, and a batch that mixes its rows up is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.core.compare import relative_error
from scale_export.core.limits import FOLD_RELATIVE, LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.device.engine import Step
from scale_export.device.generation import Generator
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.proof import paths
from scale_export.proof.cases import Case, Prompt
from scale_export.proof.paths import MOST_CACHE_BYTES, MOST_ROWS, Room, batches, path_logits
from tests.helpers.emission import emitting, generator, reference
from tests.helpers.pictures import picture

ROOM = Room(rows=3)
ASKED = (
    ("where is the circle ?", (3, 9, 4)),
    ("where ?", (5, 6, 7)),
    ("where is the square ?", (8, 3, 12)),
    ("where is the red ?", (2, 7, 5)),
    ("is the blue circle ?", (4, 4, 6)),
    ("where is the circle ?", (9, 2)),
)
"""Prompts of two lengths, and one path that is shorter."""


def cases_of(base: BaseModel) -> list[Case]:
    """Each on a picture of its own; the last once more without one, where the family takes that."""
    asked: list[tuple[str, tuple[Image.Image, ...], tuple[int, ...]]] = [
        (text, (picture(number, (48, 48)),), tokens) for number, (text, tokens) in enumerate(ASKED)
    ]
    if base.family.takes_text_alone:
        asked.append((ASKED[-1][0], (), ASKED[-1][1]))
    return [
        Case(
            prompt=Prompt(name=str(number), images=images, text=text),
            inputs=encode_messages(base.processor, [user_message(images, text)]),
            tokens=tokens,
            logits=np.zeros((len(tokens) + 1, 1), np.float32),
        )
        for number, (text, images, tokens) in enumerate(asked)
    ]


def alone(asked: Generator, cases: Sequence[Case]) -> list[Float32]:
    return [asked.forced_logits(case.inputs, case.tokens) for case in cases]


def worst(expected: Sequence[Float32], found: Sequence[Float32]) -> float:
    return max(relative_error(e, f) for e, f in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("family", "variant", "mode"),
    [
        ("llava", "mistral-window", "gate"),
        ("llava", "llama", "two-phase"),
        ("qwen2_vl", "own", "gate"),
        ("qwen3_vl", "own", "gate"),
        ("gemma3", "own", "gate"),
    ],
)
def test_rows_give_what_each_gives_alone(
    base_of: Any,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    variant: str,
    mode: str,
) -> None:
    made = emitting("cpu", backend, base_of, tmp_path_factory)(family, variant, "float32", mode, "last")
    plan, folded, graphs = made
    cases = cases_of(plan.base)
    engine = OnnxEngine(graphs, context_length=128, providers=["CPUExecutionProvider"], strict=True)
    sides = (
        (reference(plan, folded), FOLD_RELATIVE),
        (generator(engine, plan.base, plan.fold), LOWERING_RELATIVE["float32"]),
    )
    assert max(map(len, batches(cases, ROOM))) == ROOM.rows, "some run together"
    for asked, limit in sides:
        assert worst(alone(asked, cases), path_logits(asked, cases, ROOM)) <= limit
    together = paths.joined

    def padding_shown(steps: Sequence[Step]) -> Step:
        found = together(steps)
        return replace(found, lengths=np.full_like(found.lengths, found.inputs_embeds.shape[1]))

    monkeypatch.setattr(paths, "joined", padding_shown)
    for asked, limit in sides:
        assert worst(alone(asked, cases), path_logits(asked, cases, ROOM)) > 10 * limit


def test_only_prompts_of_one_kind_run_together(base_of: Any) -> None:
    cases = cases_of(base_of("llava", "llama"))
    for room, largest in ((Room(), 1), (ROOM, 3), (Room(rows=99), 5), (Room(rows=99, tokens=1), 1)):
        found = list(batches(cases, room))
        assert sorted(index for batch in found for index in batch) == list(range(len(cases)))
        assert max(map(len, found)) == largest
        for batch in found:
            kinds = {(len(cases[index].tokens), "pixel_values" in cases[index].inputs) for index in batch}
            assert len(kinds) == 1


def test_as_many_rows_as_their_caches_leave_room_for(base_of: Any) -> None:
    spec = base_of("llava", "llama").spec
    assert Room.of(spec, 64).rows == MOST_ROWS
    one = 2 * 4 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    assert Room.of(spec, MOST_CACHE_BYTES // (5 * one)).rows == 5
    assert Room.of(spec, MOST_CACHE_BYTES).rows == 1, "one prompt runs whatever it takes"
