"""Logits along the cases' paths, several cases in one forward where the engine takes them.

Rules:
1. Prompts of one kind run together, the shorter ones padded on the right: each row computes what it would alone
   (``Engine.forward``), and weights are read (and dequantized, by kernels that do it at every call) once for all.
2. What ships runs one prompt at a time, as a device runs it: batches are for the sides that it is compared with. The
   end of the context (``last_slots``) holds those on one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from scale_export.core.records import Array, DecoderSpec, Float32
from scale_export.device.engine import Step
from scale_export.device.generation import Generator

from .cases import Case

AnyArray = TypeVar("AnyArray", bound=Array)

MOST_ROWS = 16
"""Prompts of one forward, at the most: beyond that the weights cost little beside the rows."""

MOST_TOKENS = 4096
"""Positions of one forward, at the most."""

MOST_CACHE_BYTES = 512 * 1024**2
"""What the caches of one batch may take, in float32; one prompt runs whatever its own takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many prompts may run together: ``rows``, and ``tokens`` of all of them."""

    rows: int = 1
    tokens: int = MOST_TOKENS

    @classmethod
    def of(cls, spec: DecoderSpec, context_length: int) -> Room:
        """For a decoder whose caches have the slots of a whole context, as graphs' have."""
        one = 2 * 4 * spec.num_layers * spec.num_kv_heads * spec.head_dim * context_length
        return cls(rows=max(1, min(MOST_ROWS, MOST_CACHE_BYTES // one)))


ALONE = Room()
"""One prompt at a time."""


def path_logits(generator: Generator, cases: Sequence[Case], room: Room = ALONE) -> list[Float32]:
    """One engine's logits along every case's path, each ``[positions, V]``, in the cases' order."""
    found: dict[int, Float32] = {}
    for batch in batches(cases, room):
        found |= zip(batch, _together(generator, [cases[index] for index in batch]), strict=True)
    return [found[index] for index in range(len(cases))]


def batches(cases: Sequence[Case], room: Room) -> Iterator[list[int]]:
    """The numbers of cases that run together: of one kind, paths of one length, prompts of similar ones (rule 1)."""
    kinds: dict[tuple[int, bool], list[int]] = {}
    for index, case in enumerate(cases):
        kinds.setdefault((len(case.tokens), "pixel_values" in case.inputs), []).append(index)
    for (answer, _), same in kinds.items():
        batch: list[int] = []
        for index in sorted(same, key=lambda index: _length(cases[index])):
            rows = len(batch) + 1
            if batch and (rows > room.rows or rows * (_length(cases[index]) + answer) > room.tokens):
                yield batch
                batch = []
            batch.append(index)
        yield batch


def _length(case: Case) -> int:
    return int(case.inputs["input_ids"].shape[1])


def _together(generator: Generator, cases: Sequence[Case]) -> Sequence[Float32]:
    """Logits of cases of one kind, ``[positions, V]`` each."""
    if len(cases) == 1:
        return [generator.forced_logits(cases[0].inputs, cases[0].tokens)]
    prompts = [generator.embed_prompt(case.inputs) for case in cases]
    cache = generator.engine.new_cache(len(prompts))
    starts = [prompt.tokens - 1 if generator.fold == "two-phase" else 0 for prompt in prompts]
    placed = list(zip(prompts, starts, strict=True))
    if any(starts):
        steps = [prompt.step(slice(0, start), gated=False) for prompt, start in placed]
        generator.forward(cache, joined(steps))
    steps = [prompt.step(slice(start, prompt.tokens), gated=True) for prompt, start in placed]
    rows = [generator.forward(cache, joined(steps))]
    for offset in range(len(cases[0].tokens)):
        steps = [
            generator.decode_step(case.tokens[offset], prompt.next_position + offset)
            for case, prompt in zip(cases, prompts, strict=True)
        ]
        rows.append(generator.forward(cache, joined(steps)))
    return list(np.stack(rows, axis=1))


def joined(steps: Sequence[Step], fill: float = 0.0) -> Step:
    """Steps of one row each as one step, the shorter ones padded on the right with ``fill``, which nothing sees.

    All of one kind: with groups of tokens or without, with visual features for layers or without.
    """
    width = max(step.inputs_embeds.shape[1] for step in steps)
    groups = [step.attention_group for step in steps if step.attention_group is not None]
    added = [step.deepstack for step in steps if step.deepstack is not None]
    if len(groups) not in (0, len(steps)) or len(added) not in (0, len(steps)):
        raise ValueError("rows of different kinds do not run together")
    return Step(
        inputs_embeds=np.concatenate([_wide(step.inputs_embeds, 1, width, fill) for step in steps]),
        lengths=np.concatenate([step.lengths for step in steps]),
        position_ids=np.concatenate([_wide(step.position_ids, -1, width, 0) for step in steps], axis=-2),
        gated=steps[0].gated,
        attention_group=np.concatenate([_wide(group, 1, width, -1) for group in groups]) if groups else None,
        deepstack=np.concatenate([_wide(part, 2, width, fill) for part in added], axis=1) if added else None,
    )


def _wide(values: AnyArray, axis: int, width: int, fill: float) -> AnyArray:
    """``values`` with ``fill`` behind its own along an axis, up to ``width``."""
    missing = [(0, 0)] * values.ndim
    missing[axis] = (0, width - values.shape[axis])
    return cast(AnyArray, np.pad(values, missing, constant_values=fill))
