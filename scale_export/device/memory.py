"""What a package keeps of its last question, so that the next one about the same pictures runs neither twice.

1. Pictures are told by the hash of what the tower takes: its outputs are kept.
2. The decoder's cache is kept with the inputs that its slots were made of. It serves a new prompt up to the first token
   whose inputs differ, compared value by value, so that nothing but equal inputs is ever taken for equal.
3. Under scope ``last`` the last token of a prompt and every generated one carried the scalars, and so did their keys
   and values. In a longer prompt the same tokens carry none: they run again. Where scalars are in the weights, and
   under scope ``all``, every token is like every other, and answers are kept too.
4. Tokens that see later ones of their group are kept with their whole group or not at all.
5. A cache is in one answer's hands at a time. Who asks meanwhile gets an empty one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import Array, Float32
from scale_export.core.words import Scope

from .engine import Scalars
from .generation import EmbeddedPrompt, Generator, Inputs, Prefilled

PICTURES = 4
"""How many prompts' pictures are kept, the latest."""

Outputs = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """A cache and what it was made of.

    Attributes:
        fed: the inputs of its slots, from the first on.
        usable: how many of them a later prompt may begin with (rule 3).
        scalars: those in force, where every token carries them; None where nothing usable does.
    """

    cache: object
    fed: EmbeddedPrompt
    usable: int
    scalars: Scalars | None


@dataclass(kw_only=True)
class Memory:
    """The memory of one package.

    Args:
        scope: of its scalars.
    """

    scope: Scope
    _kept: list[Kept] = field(default_factory=list)
    _pictures: dict[str, Outputs] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._pictures.clear()

    @contextmanager
    def start(self, generator: Generator, inputs: Inputs) -> Iterator[Prefilled]:
        """``Generator.prefill`` on what is kept; what is fed within is kept in its turn.

        Raises:
            ContextFull: the prompt doesn't fit the package's context.
        """
        prompt = generator.embed_prompt(inputs, lambda tower: self._seen(generator, tower))
        every = generator.fold == "weights" or self.scope == "all"
        scalars = generator.scalars if every else None
        cache, held = self._taken(generator, prompt, scalars)
        start = generator.prefill_embedded(prompt, cache, held=held)
        whole = False
        try:
            yield start
            whole = True
        except GeneratorExit:  # nobody wants more
            whole = True
            raise
        finally:
            if whole:  # else half a step may lie in the cache
                fed = with_answer(generator, prompt, start) if every else prompt
                usable = fed.tokens if every else fed.tokens - 1
                self._kept[:] = [Kept(cache=start.cache, fed=fed, usable=usable, scalars=scalars)]

    def _seen(self, generator: Generator, tower: Mapping[str, Array]) -> Outputs:
        """The tower's outputs, from before where it was given the same."""
        name = digest(tower)
        outputs = self._pictures.pop(name, None) or generator.engine.vision(tower)
        self._pictures[name] = outputs  # as the latest
        while len(self._pictures) > PICTURES:
            del self._pictures[next(iter(self._pictures))]
        return outputs

    def _taken(
        self, generator: Generator, prompt: EmbeddedPrompt, scalars: Scalars | None
    ) -> tuple[object | None, int]:
        """The kept cache, taken out of the memory and cut to what it shares with the prompt, and how many that are."""
        try:
            kept = self._kept.pop()
        except IndexError:
            return None, 0
        held = shared(kept, prompt) if _same(kept.scalars, scalars) else 0
        generator.engine.cut(kept.cache, held)
        return kept.cache, held


def digest(tower: Mapping[str, Array]) -> str:
    """A hash of arrays with their names, dtypes and shapes."""
    found = hashlib.sha256()
    for name, value in sorted(tower.items()):
        found.update(f"{name} {value.dtype.str} {value.shape};".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()


def shared(kept: Kept, prompt: EmbeddedPrompt) -> int:
    """With how many tokens of the cache the prompt begins; its last token always runs (rules 2 to 4)."""
    count = min(kept.usable, prompt.tokens - 1)
    equal = _same_inputs(kept.fed, prompt, count)
    held = count if equal.all() else int(equal.argmin())
    while held and any(_cuts_a_group(one.attention_group, held) for one in (kept.fed, prompt)):
        held -= 1
    return held


def _same_inputs(one: EmbeddedPrompt, other: EmbeddedPrompt, count: int) -> NDArray[np.bool_]:
    """Which of the first ``count`` tokens have the same inputs, ``[count]``."""
    equal: NDArray[np.bool_] = np.all(one.embeds[0, :count] == other.embeds[0, :count], axis=-1)
    places = one.positions[..., :count] == other.positions[..., :count]
    equal &= places.reshape(-1, count).all(axis=0)
    equal &= _groups(one)[:count] == _groups(other)[:count]
    added = [part.deepstack for part in (one, other) if part.deepstack is not None]
    if len(added) == 1:
        equal &= ~added[0][:, 0, :count].any(axis=(0, 2))
    elif added:
        equal &= (added[0][:, 0, :count] == added[1][:, 0, :count]).all(axis=(0, 2))
    return equal


def _groups(prompt: EmbeddedPrompt) -> NDArray[np.int64]:
    group = prompt.attention_group
    return np.full(prompt.tokens, -1, np.int64) if group is None else group[0]


def _cuts_a_group(group: NDArray[np.int64] | None, place: int) -> bool:
    """Whether the tokens before and after a place see one another."""
    if group is None or place >= group.shape[1]:
        return False
    return bool(group[0, place] >= 0 and group[0, place] == group[0, place - 1])


def with_answer(generator: Generator, prompt: EmbeddedPrompt, start: Prefilled) -> EmbeddedPrompt:
    """A prompt and the tokens that were fed after it, as one."""
    count = len(start.fed)
    if not count:
        return prompt
    embeds = generator.embed_tokens(np.array([start.fed], np.int64))
    places = np.arange(start.next_position, start.next_position + count)
    groups, deepstack = prompt.attention_group, prompt.deepstack
    return replace(
        prompt,
        embeds=np.concatenate((prompt.embeds, embeds), axis=1),
        positions=_longer(prompt.positions, np.broadcast_to(places, (*prompt.positions.shape[:-1], count))),
        attention_group=None if groups is None else _longer(groups, np.full((1, count), -1, np.int64)),
        deepstack=None if deepstack is None else _without_pictures(deepstack, count),
    )


def _longer(values: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate((values, more), axis=-1)


def _without_pictures(deepstack: Array, count: int) -> Float32:
    return np.pad(deepstack, ((0, 0), (0, 0), (0, count), (0, 0)))


def _same(one: Scalars | None, other: Scalars | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.attn, other.attn) and np.array_equal(one.mlp, other.mlp)
