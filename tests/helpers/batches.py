"""Several prompts in one batch, padded on the right, and what each row should give on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from scale_export.core.records import Float32
from scale_export.device.engine import Step
from scale_export.device.generation import EmbeddedPrompt, Generator, Inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach
from scale_export.plan.record import Plan
from scale_export.proof.cases import forget_positions
from scale_export.proof.paths import joined
from tests.helpers.pictures import picture

ASKED = (
    ((64, 48), "where ?"),
    ((48, 96), "is the red circle left of the blue square ? yes no"),
    ((48, 48), "where is the circle ?"),
)
"""Three prompts of different lengths, each longer than any random model's window."""

TURNS = ((11, 4, 9, 6, 3, 13, 2, 5), (12, 7), (7, 8, 10, 4))
"""What each row is told next: rows of different lengths over a cache that holds something."""

TOKENS = ((3, 9, 4), (5, 6, 7), (8, 3, 12))
"""Then three decode steps."""


def asked_prompts(base: BaseModel) -> list[Inputs]:
    """The prompts as the processor prepares them, one by one."""
    return [
        encode_messages(base.processor, [user_message([picture(i, size)], text)])
        for i, (size, text) in enumerate(ASKED)
    ]


@torch.no_grad()
def hooked_row(plan: Plan, inputs: Inputs, row: int) -> Float32:
    """Logits ``[5, V]`` of the hooked Hugging Face model alone: after prompt, turn and each token."""
    model = plan.base.model
    forget_positions(model)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    with attach(model, plan.coefficients):
        output = model(**tensors, use_cache=True)
        found = [output.logits[0, -1].numpy()]
        for tokens in (TURNS[row], *((token,) for token in TOKENS[row])):
            ids, past = torch.tensor([tokens]), output.past_key_values
            output = model(input_ids=ids, past_key_values=past, use_cache=True)
            found.append(output.logits[0, -1].numpy())
    return np.stack(found).astype(np.float32)


def batched(generator: Generator, inputs: Sequence[Inputs], *, chunked: bool) -> Float32:
    """The same of all rows in one batch of an engine, ``[rows, 5, V]``; ``chunked``: prompts enter in two forwards."""
    rows = [
        list(_steps(generator, prompt, row, chunked))
        for row, prompt in enumerate(map(generator.embed_prompt, inputs))
    ]
    cache, found = generator.engine.new_cache(len(rows)), []
    for steps in zip(*rows, strict=True):
        logits = generator.forward(cache, joined(steps, fill=3))
        if steps[0].gated:
            found.append(logits)
    return np.stack(found, axis=1)


def _steps(generator: Generator, prompt: EmbeddedPrompt, row: int, chunked: bool) -> Iterator[Step]:
    """One row's forwards: of its prompt, its turn and its tokens."""
    turn = _said(generator, TURNS[row], prompt.next_position)
    for text in (prompt, turn):
        last = text.tokens - 1
        ends = [half_of(text)] if chunked and text is prompt else []
        ends += [last] if generator.fold == "two-phase" else []
        start = 0
        for end in filter(None, ends):
            yield text.step(slice(start, end), gated=False)
            start = end
        yield text.step(slice(start, text.tokens), gated=True)
    for offset, token in enumerate(TOKENS[row]):
        yield generator.decode_step(token, turn.next_position + offset)


def _said(generator: Generator, tokens: Sequence[int], position: int) -> EmbeddedPrompt:
    """Words without pictures, from ``position`` on."""
    positions = np.arange(position, position + len(tokens))[None]
    axes = generator.family.position_axes
    return EmbeddedPrompt(
        embeds=generator.embed_tokens(np.array([tokens], np.int64)),
        positions=positions if axes == 1 else np.tile(positions, (axes, 1, 1)),
    )


def half_of(prompt: EmbeddedPrompt) -> int:
    """Half of a prompt's tokens, or the last place before that where no group of tokens is cut, or 0."""
    half, groups = prompt.tokens // 2, prompt.attention_group
    while groups is not None and half and groups[0, half] >= 0 and groups[0, half] == groups[0, half - 1]:
        half -= 1
    return half
