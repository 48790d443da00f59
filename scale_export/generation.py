"""From a prepared prompt to logits and tokens over any ``Engine``: prefill, decode, and the fold modes' phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import Engine, Scalars, Step
from .families import Family
from .records import Array, Float32, FoldMode

Inputs = Mapping[str, Array]
"""A processor's NumPy output for one prompt: ``input_ids [1, T]``, its mask, pixels and what goes with them."""


@dataclass(kw_only=True)
class Generator:
    """A model that answers: an engine, its family's image and position rules, and how its scalars act."""

    engine: Engine
    family: Family
    fold: FoldMode
    image_token_id: int
    runtime_config: Mapping[str, Any]
    scalars: Scalars | None = None
    """Scalars in place of the package's own; only where the engine can override them."""

    def embed_prompt(self, inputs: Inputs) -> Array:
        """``inputs_embeds [1, T, D]`` of a prompt, its pictures' features in place."""
        ids = inputs["input_ids"].astype(np.int64)
        if "pixel_values" not in inputs:
            return self.embed_tokens(ids)
        outputs = self.engine.vision(self.family.tiles(inputs))
        features = self.family.pack(outputs, inputs, self.runtime_config)
        expected = int((ids == self.image_token_id).sum())
        if len(features) != expected:
            raise ValueError(
                f"the prompt has {expected} image tokens, the pictures give {len(features)} rows"
            )
        return self.engine.embed(ids, features)

    def embed_tokens(self, ids: NDArray[np.int64]) -> Array:
        """``[B, T]`` token ids without pictures → ``[B, T, D]``."""
        return self.engine.embed(ids, np.zeros((0, self.engine.hidden_size), np.float32))

    def prefill(self, inputs: Inputs) -> tuple[Any, Float32]:
        """Run one prompt; the cache, and the logits ``[1, V]`` after its last token.

        Two-phase packages run all but the last token on base weights, the last on the folded ones: its
        position is the only one of the prompt that scope ``last`` scales.
        """
        embeds = self.embed_prompt(inputs)
        positions = self.family.positions(np.ones(embeds.shape[:2], np.int64))
        cache = self.engine.new_cache(1)
        split = embeds.shape[1] - 1 if self.fold == "two-phase" else 0
        if split > 0:
            self._forward(cache, embeds[:, :split], positions[:, :split], gated=False)
        logits = self._forward(cache, embeds[:, split:], positions[:, split:], gated=True)
        return cache, logits

    def decode(self, cache: Any, token: int, position: int) -> Float32:
        """Run one generated token at its position; the logits ``[1, V]`` after it."""
        embeds = self.embed_tokens(np.array([[token]], np.int64))
        return self._forward(cache, embeds, np.array([[position]], np.int64), gated=True)

    def _forward(self, cache: Any, embeds: Array, positions: NDArray[np.int64], *, gated: bool) -> Float32:
        lengths = np.full(len(embeds), embeds.shape[1], np.int64)
        step = Step(inputs_embeds=embeds, lengths=lengths, position_ids=positions, gated=gated)
        return self.engine.forward(cache, step, self.scalars, "scaled" if gated else "base")

    def forced_logits(self, inputs: Inputs, tokens: Sequence[int]) -> Float32:
        """Logits ``[len(tokens) + 1, V]`` after the prompt and after each of ``tokens`` fed as if generated."""
        cache, logits = self.prefill(inputs)
        start = inputs["input_ids"].shape[1]
        rows = [logits[0]]
        for offset, token in enumerate(tokens):
            rows.append(self.decode(cache, token, start + offset)[0])
        return np.stack(rows)

    def stream(self, inputs: Inputs, *, max_new_tokens: int, eos_token_ids: frozenset[int]) -> Iterator[int]:
        """Greedy tokens one by one, without the end token."""
        cache, logits = self.prefill(inputs)
        start = inputs["input_ids"].shape[1]
        for step in range(max_new_tokens):
            token = int(logits[0].argmax())
            if token in eos_token_ids:
                return
            yield token
            if step + 1 < max_new_tokens:
                logits = self.decode(cache, token, start + step)
