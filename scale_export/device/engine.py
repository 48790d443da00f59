"""Backends: each emits graphs for one runtime, and opens an ``Engine`` on what it emitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import ContextFull
from scale_export.core.records import Array, Float32

Phase = Literal["base", "scaled"]
"""Which weights a forward runs on in a two-phase package; the other packages have one set for both."""


Tap = Callable[[str, Array, Array], None]
"""Told of every matrix product of a decoder as it runs: the matrix's name, what goes in and what comes out
(``[B, T, in]``, ``[B, T, out]``); an engine may run a prompt in several chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalars:
    """Scalars that override a gated decoder's defaults: ``attn [L, H]`` and ``mlp [L]``, float32."""

    attn: Float32
    mlp: Float32

    def at(self, strength: float) -> Self:
        """The scalars s at a strength: ``1 + strength · (s - 1)``, which is the base model at 0."""
        parts = ((1 + strength * (part - 1)).astype(np.float32) for part in (self.attn, self.mlp))
        attn, mlp = parts
        return replace(self, attn=attn, mlp=mlp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward of the decoder over T new positions of B rows.

    Attributes:
        inputs_embeds: ``[B, T, D]``; rows shorter than T are padded on the right.
        lengths: int64 ``[B]``, how many of the T positions are tokens, from 1.
        position_ids: int64 ``[B, T]``, or ``[axes, B, T]`` where positions have several axes.
        gated: whether the last valid position of each row carries the scalars (not so in a chunk of a
            prompt that another chunk follows).
        attention_group: int64 ``[B, T]`` of a decoder with groups (see ``PortableDecoder.forward``); None puts
            every token in none.
        deepstack: ``[layers, B, T, D]`` of a decoder that adds visual features to its first layers' outputs;
            None adds nothing.
    """

    inputs_embeds: Array
    lengths: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    gated: bool = True
    attention_group: NDArray[np.int64] | None = None
    deepstack: Array | None = None

    def __post_init__(self) -> None:
        rows, tokens = self.inputs_embeds.shape[:2]
        if self.lengths.shape != (rows,) or self.lengths.min() < 1 or self.lengths.max() > tokens:
            raise ValueError(
                f"lengths {self.lengths.tolist()} do not fit {rows} rows of {tokens} positions: give one for each row, "
                f"from 1 to {tokens}"
            )

    def row(self, index: int) -> Self:
        """One row on its own, without its padding."""
        one, tokens = slice(index, index + 1), int(self.lengths[index])
        group, deepstack = self.attention_group, self.deepstack
        return replace(
            self,
            inputs_embeds=self.inputs_embeds[one, :tokens],
            lengths=self.lengths[one],
            position_ids=self.position_ids[..., one, :tokens],
            attention_group=None if group is None else group[one, :tokens],
            deepstack=None if deepstack is None else deepstack[:, one, :tokens],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Made-up keys and values, so that a step may stand anywhere in the context without the steps before it.

    Attributes:
        tokens: how many of one row's slots count as filled.
        slots: how many have numbers. Those from ``tokens`` on are like what an earlier use of a cache leaves behind: no
            step may see them before it writes over them.
    """

    tokens: int
    slots: int

    def layer(self, index: int, heads: int, width: int) -> tuple[Float32, Float32]:
        """Keys and values ``[heads, slots, width]`` of a layer, the same for every engine: float16 holds each exactly.

        Small keys share attention among all slots, and large values let each of them be felt.
        """
        rng = np.random.default_rng((self.slots, index))
        sizes = (HELD_KEYS, HELD_VALUES * self.slots**0.5)
        keys, values = (
            (size * rng.standard_normal((heads, self.slots, width), np.float32)).astype(np.float16)
            for size in sizes
        )
        return keys.astype(np.float32), values.astype(np.float32)


HELD_KEYS, HELD_VALUES = 0.25, 0.25
"""Standard deviation of ``Held``'s keys, and of the mean of all its values."""


class Engine(Protocol):
    """A runtime holding one exported model: what generation needs of a backend."""

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding."""
        ...

    @property
    def executed_by(self) -> str:
        """What computes, in words: a runtime with its version, an interpreter, a device."""
        ...

    @property
    def can_override(self) -> bool:
        """Whether ``forward`` takes scalars (a gated decoder), or holds them in its weights."""
        ...

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What ``Family.tower_inputs`` gives → the tower's named outputs.

        Raises:
            UserError: a picture has more patches than the tower takes.
        """
        ...

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        """``input_ids [B, T]`` and the rows ``[image tokens, D]`` for their image tokens → ``[B, T, D]``."""
        ...

    def new_cache(self, rows: int) -> object:
        """An empty KV cache for that many rows."""
        ...

    def held_cache(self, held: Held) -> object:
        """The KV cache of one row that holds ``held``, whose slots are the whole context's.

        Raises:
            ContextFull: the cache has fewer.
        """
        ...

    def cut(self, cache: Any, tokens: int) -> None:
        """Forget all but the first ``tokens`` of a cache of one row, which holds as many or more."""
        ...

    def keys(self, layer: int, step: Step, phase: Phase) -> Float32 | None:
        """The keys ``[B, K, T, hd]`` that a layer makes of a step over an empty cache; layers behind it do not run.

        None where graphs look nothing up by position, so that one position is as good as another.
        """
        ...

    def forward(self, cache: Any, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        """Run one step, grow the cache in place, and return logits ``[B, V]`` of each row's last valid position.

        Each row gives what it would give alone, whatever the other rows' lengths, now and in the cache.

        Raises:
            ContextFull: the tokens don't fit a package's context; the cache is as it was.
        """
        ...


def check_room(tokens: int, context_length: int) -> None:
    """Refuse a cache of ``tokens`` tokens where a package's context holds fewer.

    Raises:
        ContextFull: it does.
    """
    if tokens > context_length:
        raise ContextFull(
            f"{tokens} tokens do not fit the package's context of {context_length}: "
            f"shorten the prompt or ask for fewer new tokens"
        )


def tower_feeds(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A tower's inputs in the types that every tower takes: float32 and int32."""
    return {
        name: np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int32)
        for name, value in inputs.items()
    }
