"""From a prepared prompt to logits and tokens over any ``Engine``: prefill, decode, and the fold modes' phases."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import ContextFull
from scale_export.core.records import Array, Float32
from scale_export.core.words import FoldMode
from scale_export.families._family import Family
from scale_export.families._runtime import Runtime

from .engine import Engine, Scalars, Step
from .rules import GenerationRules

Inputs = Mapping[str, Array]
"""A processor's NumPy output for one prompt: ``input_ids [1, T]``, its mask, pixels and what goes with them."""

Tower = Callable[[Mapping[str, Array]], dict[str, Array]]
"""What a tower takes → its named outputs."""

Stopped = Literal["end", "length", "context"]
"""Why an answer stopped: the model ended it, it has as many tokens as were asked for, or the context is full."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddedPrompt:
    """One prompt as the decoder takes it; the fields are those of a ``Step`` for all T tokens of one row."""

    embeds: Array
    positions: NDArray[np.int64]
    attention_group: NDArray[np.int64] | None = None
    deepstack: Array | None = None

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.embeds.shape[1])

    @property
    def next_position(self) -> int:
        """The position of the first generated token; the others count on from it."""
        return int(self.positions.max()) + 1

    def step(self, window: slice, *, gated: bool) -> Step:
        """The forward over the tokens of ``window``."""
        embeds, group, deepstack = self.embeds[:, window], self.attention_group, self.deepstack
        return Step(
            inputs_embeds=embeds,
            lengths=np.full(1, embeds.shape[1], np.int64),
            position_ids=self.positions[..., window],
            gated=gated,
            attention_group=None if group is None else group[:, window],
            deepstack=None if deepstack is None else deepstack[:, :, window],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilled:
    """A cache that holds a prompt, the logits ``[1, V]`` after it, and where generation goes on.

    Attributes:
        next_position: of the first token after the prompt.
        fed: the tokens that the cache holds after the prompt; ``Generator.follow`` adds to them.
    """

    cache: object
    logits: Float32
    next_position: int
    fed: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class Generator:
    """A model that answers: an engine, its family's image and position rules, and how its scalars act."""

    engine: Engine
    family: Family
    fold: FoldMode
    image_token_id: int
    runtime_config: Runtime
    scalars: Scalars | None = None
    """Scalars in place of the package's own; only where the engine can override them."""

    def embed_prompt(self, inputs: Inputs, see: Tower | None = None) -> EmbeddedPrompt:
        """A prompt's tokens with its pictures' features in place; ``see`` stands in for the engine's tower."""
        ids = inputs["input_ids"].astype(np.int64)
        family, runtime = self.family, self.runtime_config
        positions = family.positions(inputs, runtime)
        groups = family.attention_groups(inputs, runtime)
        if "pixel_values" not in inputs:
            return EmbeddedPrompt(embeds=self.embed_tokens(ids), positions=positions, attention_group=groups)
        outputs = (see or self.engine.vision)(family.tower_inputs(inputs, runtime))
        features = family.pack(outputs, inputs, runtime)
        at_image = ids == self.image_token_id
        if len(features) != at_image.sum():
            raise ValueError(
                f"the prompt has {at_image.sum()} image tokens, the pictures give {len(features)} rows"
            )
        layers = family.deepstack(outputs, inputs, runtime)
        deepstack = None
        if layers is not None:
            deepstack = np.zeros((len(layers), *ids.shape, layers.shape[-1]), np.float32)
            deepstack[:, at_image] = layers
        return EmbeddedPrompt(
            embeds=self.engine.embed(ids, features),
            positions=positions,
            attention_group=groups,
            deepstack=deepstack,
        )

    def embed_tokens(self, ids: NDArray[np.int64]) -> Array:
        """``[B, T]`` token ids without pictures → ``[B, T, D]``."""
        return self.engine.embed(ids, np.zeros((0, self.engine.hidden_size), np.float32))

    def prefill(self, inputs: Inputs) -> Prefilled:
        """Run one prompt.

        Two-phase packages run all but the last token on base weights, the last on the folded ones: its
        position is the only one of the prompt that scope ``last`` scales.
        """
        return self.prefill_embedded(self.embed_prompt(inputs))

    def prefill_embedded(
        self, prompt: EmbeddedPrompt, cache: object | None = None, *, held: int = 0
    ) -> Prefilled:
        """``prefill`` of a prompt that is embedded already, over a ``cache`` of one row or an empty one.

        Args:
            held: how many of the prompt's tokens the cache holds already, not the last one.
        """
        cache = self.engine.new_cache(1) if cache is None else cache
        split = prompt.tokens - 1 if self.fold == "two-phase" else held
        if split > held:
            self.forward(cache, prompt.step(slice(held, split), gated=False))
        logits = self.forward(cache, prompt.step(slice(split, prompt.tokens), gated=True))
        return Prefilled(cache=cache, logits=logits, next_position=prompt.next_position)

    def decode(self, cache: object, token: int, position: int) -> Float32:
        """Run one generated token at its position; the logits ``[1, V]`` after it."""
        return self.forward(cache, self.decode_step(token, position))

    def follow(self, start: Prefilled, token: int) -> Float32:
        """Feed the next token after a prompt; the logits ``[1, V]`` after it."""
        logits = self.decode(start.cache, token, start.next_position + len(start.fed))
        start.fed.append(token)
        return logits

    def decode_step(self, token: int, position: int) -> Step:
        """The forward of one generated token at its position."""
        shape = (1, 1) if self.family.position_axes == 1 else (self.family.position_axes, 1, 1)
        return Step(
            inputs_embeds=self.embed_tokens(np.array([[token]], np.int64)),
            lengths=np.ones(1, np.int64),
            position_ids=np.full(shape, position, np.int64),
        )

    def forward(self, cache: object, step: Step) -> Float32:
        """One step on the weights of its phase; logits ``[B, V]``."""
        return self.engine.forward(cache, step, self.scalars, "scaled" if step.gated else "base")

    def forced_logits(self, inputs: Inputs, tokens: Sequence[int]) -> Float32:
        """Logits ``[len(tokens) + 1, V]`` after the prompt and after each of ``tokens`` fed as if generated."""
        start = self.prefill(inputs)
        return np.stack([start.logits[0], *(self.follow(start, token)[0] for token in tokens)])

    def stream(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int,
        rules: GenerationRules,
        starting: Starting | None = None,
    ) -> abc.Generator[int, None, Stopped]:
        """Greedy tokens by the rules, one by one, without the end token; returns why there are no more.

        Args:
            starting: runs the prompt; None runs all of it.

        Raises:
            ContextFull: the prompt alone doesn't fit the package's context.
        """
        with (starting or from_nothing)(self, inputs) as start:
            logits = start.logits
            prompt, answer = inputs["input_ids"][0].tolist(), list[int]()
            for offset in range(max_new_tokens):
                token = rules.choose(logits[0], prompt, answer)
                if token in rules.end_tokens:
                    return "end"
                yield token
                answer.append(token)
                if offset + 1 < max_new_tokens:
                    try:
                        logits = self.follow(start, token)
                    except ContextFull:
                        return "context"
            return "length"


class Starting(Protocol):
    """Runs a prompt and hands out what it left; whoever goes on does so within."""

    def __call__(self, generator: Generator, inputs: Inputs) -> AbstractContextManager[Prefilled]: ...


@contextmanager
def from_nothing(generator: Generator, inputs: Inputs) -> Iterator[Prefilled]:
    """Run all of a prompt."""
    yield generator.prefill(inputs)
