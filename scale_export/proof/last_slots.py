"""The end of a package's context, reached without filling it: part of the lowering leg.

Parity prompts are short. What lies behind them (the rows of rotary tables, the last slots of the cache, masks at their
full width) is held by one more case, the same for every model of a context of C tokens:

1. The cache begins with made-up keys and values in all but its last ``TOKENS`` slots, the same on both sides; nothing
   is computed for them. The slots behind hold other numbers, as a cache does that was used before: a mask that shows
   one of them too early, or a key that is written beside its slot, changes the result.
2. Words of the vocabulary fill the rest: a prompt of all but one of them, as one chunk of Core ML's ``prefill``, then a
   decode step on the last slot of the context, at the last position.
3. Where graphs look turns up by position, the keys of a layer of each rotary embedding are compared at every position
   of the context, in forwards over an empty cache that end with that layer.

It costs one short prompt, and of the layers up to the first of each rotary embedding C tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scale_export.core.compare import LargestError, relative_error, worst_of
from scale_export.core.errors import ContextFull
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.records import DecoderSpec, Float32
from scale_export.core.words import Precision
from scale_export.device.engine import Held, Phase, Step
from scale_export.device.generation import EmbeddedPrompt, Generator
from scale_export.plan.record import Plan

from .numbers import human_bytes
from .report import ParityReport

TOKENS = 64
"""Of the context's last, which are run: prompt and decode step. Fewer where half of a context is less."""

GROUP = slice(8, 24)
"""Of the prompt's tokens: those that see one another, where a decoder has groups."""

SWEPT = 1024
"""Positions of one forward that compares keys."""

MOST_BYTES = 4 * 1024**3
"""Of the two caches, float32, up to which the end of a context is looked at."""

LAST = "max |Δlogit| / max |logit| in the last slots of the context"
POSITIONS = "max |Δ| / max |key| at every position of the context"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastSlots:
    """The case of one context (see above)."""

    spec: DecoderSpec
    context_length: int

    @property
    def cache_bytes(self) -> int:
        """What the caches of both sides take, in float32."""
        spec = self.spec
        return 2 * 2 * 4 * spec.num_layers * spec.num_kv_heads * spec.head_dim * self.context_length

    def fits(self, report: ParityReport) -> bool:
        """Whether the caches are small enough to be looked at; the report says so where they are not."""
        if self.cache_bytes <= MOST_BYTES:
            return True
        report.skip(
            "end of the context",
            f"two caches of {self.context_length:,} tokens take {human_bytes(self.cache_bytes)}, and up to "
            f"{human_bytes(MOST_BYTES)} are looked at",
        )
        return False

    @property
    def tokens(self) -> int:
        """How many are run."""
        return min(TOKENS, self.context_length // 2)

    @property
    def held(self) -> Held:
        """What the cache begins with."""
        return Held(tokens=self.context_length - self.tokens, slots=self.context_length)

    def ids(self, count: int) -> NDArray[np.int64]:
        """Token ids ``[1, count]`` from all over the vocabulary, in no order that a model knows."""
        return (np.arange(count, dtype=np.int64) * 40503 % self.spec.vocab_size)[None]

    def prompt(self, generator: Generator) -> EmbeddedPrompt:
        """All tokens but the last, as an engine embeds them."""
        count = self.tokens - 1
        positions = np.arange(self.held.tokens, self.context_length - 1)[None]
        group = None
        if self.spec.grouped_attention:
            group = np.full((1, count), -1, np.int64)
            group[:, GROUP] = 0
        return EmbeddedPrompt(
            embeds=generator.embed_tokens(self.ids(count)),
            positions=self._on_axes(positions),
            attention_group=group,
        )

    def last_step(self, generator: Generator) -> Step:
        """The decode step on the last slot."""
        token = int(self.ids(self.tokens)[0, -1])
        return generator.decode_step(token, self.context_length - 1)

    def logits(self, generator: Generator) -> Float32:
        """Logits ``[2, V]`` after the prompt and after the last slot."""
        start = generator.prefill_embedded(self.prompt(generator), generator.engine.held_cache(self.held))
        return np.concatenate((start.logits, generator.forward(start.cache, self.last_step(generator))))

    def keys_error(self, expected: Generator, found: Generator) -> float | None:
        """Of keys at every position, in every phase; None where nothing is looked up by position."""
        phases: tuple[Phase, ...] = ("base", "scaled") if found.fold == "two-phase" else ("base",)
        errors = []
        for start in range(0, self.context_length, SWEPT):
            positions = np.arange(start, min(start + SWEPT, self.context_length))[None]
            for phase in phases:
                for layer in sorted({self.spec.layer_rotaries.index(r) for r in self.spec.layer_rotaries}):
                    right = found.engine.keys(layer, self._anywhere(found, positions), phase)
                    if right is None:
                        return None
                    left = expected.engine.keys(layer, self._anywhere(expected, positions), phase)
                    assert left is not None, "the portable decoder works its turns out"
                    errors.append(relative_error(left, right))
        return worst_of(errors)

    def errors(self, expected: Generator, found: Generator, limit: float) -> tuple[LargestError, ...]:
        """What both rules come to, of two decoders on the same weights."""
        try:
            last = relative_error(self.logits(expected), self.logits(found))
        except ContextFull:  # a package that says that it holds less
            last = float("inf")
        held = [LargestError(metric=LAST, value=last, limit=limit)]
        keys = self.keys_error(expected, found)
        if keys is not None:
            held.append(LargestError(metric=POSITIONS, value=keys, limit=limit))
        return tuple(held)

    def _anywhere(self, generator: Generator, positions: NDArray[np.int64]) -> Step:
        """A forward at those positions ``[1, T]``, all of the prompt's first word."""
        count = positions.shape[1]
        return Step(
            inputs_embeds=np.repeat(generator.embed_tokens(self.ids(1)), count, axis=1),
            lengths=np.full(1, count, np.int64),
            position_ids=self._on_axes(positions),
            gated=False,
        )

    def _on_axes(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        axes = self.spec.position_axes
        return positions if axes == 1 else np.tile(positions, (axes, 1, 1))


def end_of_context(
    report: ParityReport, plan: Plan, expected: Generator, found: Generator, precision: Precision
) -> tuple[LargestError, ...]:
    """The case of a plan's context, of the portable decoder and a graph that computes in ``precision``.

    Nothing where its caches are too large; the report says so then.
    """
    case = LastSlots(spec=plan.base.spec, context_length=plan.context_length)
    if not case.fits(report):
        return ()
    return case.errors(expected, found, LOWERING_RELATIVE[precision])
