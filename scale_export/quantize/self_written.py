"""Chats that a model writes itself, to be calibrated on where no question set is known.

1. A model is given its chat template up to where a user's words stand, behind a picture but for every fourth time. It
   writes the words, then (behind the template's end of that turn) the answer, with ScAle as in use.
2. Every token is drawn from the model's own distribution (temperature 1, nothing cut off but tokens that are no words),
   by a generator of its own for each chat: the same seed gives the same chats, however many there are.
3. Question and answer have ``LEAST_TOKENS`` or more, so that a model of few words is seen too. They end where the
   model ends them, or at ``QUESTION_TOKENS`` and ``ANSWER_TOKENS``.
4. Chats are kept in the cache, named by a hash of the model, its scalars, the pictures and the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.core.cache import WRITTEN
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.device.engine import Engine
from scale_export.device.generation import EmbeddedPrompt, Generator
from scale_export.model.arithmetic import TorchKernels, empty_cache
from scale_export.model.base import BaseModel
from scale_export.model.decoder import Cache, Gate, PortableDecoder
from scale_export.model.engine import ReferenceInputs
from scale_export.questions import load_questions
from scale_export.questions.question import StoredImage

from .example import Example
from .frame import Frame, frame_of
from .sources import SelfSource
from .stored import add_inputs, model_facts, write_text_whole

SCHEMA: Final = 1
"""Part of every entry's name; to be raised where the same inputs would give other chats."""
LEAST_TOKENS: Final = 8
QUESTION_TOKENS: Final = 24
ANSWER_TOKENS: Final = 40
GENERATED: Final = ("gridworld", "atlas")
"""The sets whose pictures are taken in turn where a user gives none."""
BATCH_TOKENS: Final = 4096
"""Positions that are decoded together: chats in a batch times the length of the longest."""


Written: TypeAlias = tuple[list[int], list[int]]
"""The tokens of a question, and of its answer."""


@dataclass(slots=True)
class Chat:
    """One chat as it is written.

    Attributes:
        after: the template's tokens between question and answer.
        forced: how many of those were fed.
    """

    after: tuple[int, ...]
    rng: random.Random
    question: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    forced: int | None = None
    done: bool = False

    def next_token(self, logits: Float32, ends: frozenset[int], barred: frozenset[int]) -> tuple[int, bool]:
        """The token to feed after ``logits [V]``, and whether it carries the scalars."""
        if self.forced is None:
            stops = ends | {self.after[0]}
            token = self._drawn(logits, _without(stops, barred, len(self.question)))
            if token not in stops and len(self.question) < QUESTION_TOKENS:
                self.question.append(token)
                return token, False
            self.forced = 0
        if self.forced < len(self.after):
            self.forced += 1
            return self.after[self.forced - 1], self.forced == len(self.after)
        token = self._drawn(logits, _without(ends, barred, len(self.answer)))
        if not self.done:
            self.answer.append(token)
            self.done = token in ends or len(self.answer) == ANSWER_TOKENS
        return token, True

    def _drawn(self, logits: Float32, barred: frozenset[int]) -> int:
        """A token, each as likely as the model has it (rule 2)."""
        scores = logits.astype(np.float64)
        scores[[token for token in barred if token < len(scores)]] = -np.inf
        total = np.cumsum(np.exp(scores - scores.max()))
        return int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))


def _without(ends: frozenset[int], barred: frozenset[int], written: int) -> frozenset[int]:
    """What can't come next: a turn doesn't end before it has its least tokens (rule 3)."""
    return barred | ends if written < LEAST_TOKENS else barred - ends


def self_examples(
    base: BaseModel,
    coefficients: Coefficients,
    source: SelfSource,
    *,
    limit: int,
    pictures: bool,
    log: WorkLog,
    cache: Path,
) -> list[Example]:
    """The chats as calibration examples, from the cache, or written now.

    Raises:
        UserError: no place for words in the chat template, pictures that can't be read, or a cache that can't be
            written.
    """
    count = min(limit, source.sequences)
    frames = _frames(base, source, count, pictures=pictures)
    entry = cache / WRITTEN / f"{_key(base, coefficients, source, frames)}.json"
    chats = read_chats(entry, count, base.spec.vocab_size)
    if chats is None:
        with log.stage("writing what to calibrate on"), torch.no_grad():
            written = _Writer(base, coefficients).write(frames, source.seed, log)
        chats = [(chat.question, chat.answer) for chat in written]
        write_text_whole(json.dumps({"sha256": _sha256(chats), "chats": chats}) + "\n", entry)
    return [
        Example(inputs=frame.filled(question), target=tuple(answer), at_once=True)
        for frame, (question, answer) in zip(frames, chats, strict=True)
    ]


def _frames(base: BaseModel, source: SelfSource, count: int, *, pictures: bool) -> list[Frame]:
    """The prompts to write into (rule 1)."""
    alone = base.family.takes_text_alone
    if not pictures and not alone:
        raise UserError(
            f"--calib-text-only is refused: model type {base.family.model_type} takes no words without a picture"
        )
    shown = [pictures and (number % 4 != 3 or not alone) for number in range(count)]
    images = iter(_pictures(source, sum(shown)))
    without = frame_of(base.processor, ()) if not all(shown) else None
    frames = [frame_of(base.processor, [next(images)]) if seen else without for seen in shown]
    found = [frame for frame in frames if frame is not None]
    for frame in found:
        if base.image_token_id in frame.after or not frame.after:
            raise UserError(
                "the model's chat template shows pictures behind a user's words, where it can't write before it sees "
                "them: calibrate on a question set with --calib"
            )
    return found


def _pictures(source: SelfSource, count: int) -> list[Image.Image]:
    """So many pictures; a user's come again where there are fewer."""
    if source.images is not None:
        files = source.picture_files()
        return [
            StoredImage(files[number % len(files)], str(files[number % len(files)])).decode()
            for number in range(count)
        ]
    each = -(-count // len(GENERATED))
    sets = [
        load_questions(f"{name}:seed={source.seed}", "train", limit=2 * each)[::2] for name in GENERATED
    ]  # whose questions come two by two about one picture
    return [question.images[0] for together in zip(*sets, strict=True) for question in together][:count]


def _key(base: BaseModel, coefficients: Coefficients, source: SelfSource, frames: Sequence[Frame]) -> str:
    """The name of a cache entry (rule 4)."""
    digest = model_facts(
        base, coefficients, SCHEMA, source.seed, LEAST_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS
    )
    for frame in frames:
        digest.update(f"{frame.start} {frame.stop}".encode())
        add_inputs(digest, frame.inputs)
    return digest.hexdigest()[:32]


def read_chats(entry: Path, count: int, words: int) -> list[Written] | None:
    """The chats of an entry; None where it is not there, not what its own hash says, or not ``count`` of such words."""
    try:
        found = json.loads(entry.read_text(encoding="utf-8")) if entry.is_file() else {}
        chats = [(list(question), list(answer)) for question, answer in found["chats"]]
        whole = found["sha256"] == _sha256(chats) and len(chats) == count
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None
    tokens = [token for chat in chats for part in chat for token in part]
    known = all(type(token) is int and 0 <= token < words for token in tokens)
    return chats if whole and known and all(part for chat in chats for part in chat) else None


def _sha256(chats: Sequence[Written]) -> str:
    return hashlib.sha256(json.dumps(chats).encode()).hexdigest()


class _Writer:
    """The PyTorch ScAle model, which draws its own words."""

    def __init__(self, base: BaseModel, coefficients: Coefficients) -> None:
        spec, self.base = base.spec, base
        self.decoder = PortableDecoder(spec, TorchKernels(base.weights), last_logits_only=True)
        attn, mlp = (torch.from_numpy(x) for x in coefficients.dense(spec.num_layers, spec.num_heads))
        self.gate = Gate(scope=coefficients.scope, attn_scale=attn, mlp_scale=mlp)
        self.generator = Generator(
            engine=cast(Engine, ReferenceInputs(base.weights, base.vision, base.image_token_id)),
            family=base.family,
            fold="gate",
            image_token_id=base.image_token_id,
            runtime_config=base.family.runtime_config(base.config),
        )
        self.ends = frozenset(base.rules.end_tokens)
        self.barred = frozenset({*base.processor.tokenizer.all_special_ids, base.image_token_id})

    def write(self, frames: Sequence[Frame], seed: int, log: WorkLog) -> list[Chat]:
        """A chat into each frame, in order."""
        chats = [
            Chat(frame.after, random.Random(f"self:{seed}:{number}")) for number, frame in enumerate(frames)
        ]
        done = 0
        for batch in _batches(frames):
            self._write([frames[number] for number in batch], [chats[number] for number in batch])
            done += len(batch)
            log.advance("writing what to calibrate on", done, len(frames))
        return chats

    def _write(self, frames: Sequence[Frame], chats: Sequence[Chat]) -> None:
        """Chats of one length of prompt, together: one token of each in a forward."""
        prompts = [self.generator.embed_prompt(frame.before()) for frame in frames]
        cache = empty_cache(self.base.spec, len(chats))
        tokens = prompts[0].tokens
        logits, cache = self._begin(prompts, cache)
        positions = np.array([prompt.next_position for prompt in prompts], np.int64)
        axes = self.base.family.position_axes
        while not all(chat.done for chat in chats):
            chosen = [
                chat.next_token(row, self.ends, self.barred) for chat, row in zip(chats, logits, strict=True)
            ]
            tokens += 1
            ids = np.array([[token] for token, _ in chosen], np.int64)
            at = (
                positions[:, None]
                if axes == 1
                else np.broadcast_to(positions[:, None], (axes, len(chats), 1))
            )
            logits, cache = self._forward(
                torch.from_numpy(np.ascontiguousarray(self.generator.embed_tokens(ids), np.float32)),
                tokens,
                torch.from_numpy(np.ascontiguousarray(at)),
                cache,
                [gated for _, gated in chosen],
            )
            positions += 1

    def _begin(self, prompts: Sequence[EmbeddedPrompt], cache: list[Cache]) -> tuple[Float32, list[Cache]]:
        """The prompts up to where words begin."""
        steps = [prompt.step(slice(0, prompt.tokens), gated=False) for prompt in prompts]
        groups = [step.attention_group for step in steps if step.attention_group is not None]
        deepstacks = [step.deepstack for step in steps if step.deepstack is not None]
        return self._forward(
            torch.from_numpy(np.concatenate([step.inputs_embeds for step in steps]).astype(np.float32)),
            prompts[0].tokens,
            torch.from_numpy(np.concatenate([step.position_ids for step in steps], axis=-2)),
            cache,
            [False] * len(prompts),
            torch.from_numpy(np.concatenate(groups)) if groups else None,
            list(torch.from_numpy(np.concatenate(deepstacks, axis=1))) if deepstacks else (),
        )

    def _forward(
        self,
        embeds: Tensor,
        seen: int,
        positions: Tensor,
        cache: list[Cache],
        gated: Sequence[bool],
        group: Tensor | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> tuple[Float32, list[Cache]]:
        """Logits ``[B, V]`` after ``embeds [B, T, D]``, and the grown cache."""
        tokens = embeds.shape[1]
        at = torch.tensor([tokens - 1 if acts else tokens for acts in gated])
        mask = torch.ones(len(gated), seen, dtype=torch.int64)
        logits, cache = self.decoder(embeds, mask, positions, cache, self.gate, at, group, deepstack)
        return cast(Float32, logits[:, -1].numpy()), cache


def _batches(frames: Sequence[Frame]) -> Iterator[list[int]]:
    """The numbers of frames of one kind and length, few enough together for memory."""
    kinds: dict[tuple[int, bool], list[int]] = {}
    for number, frame in enumerate(frames):
        kinds.setdefault((frame.start, "pixel_values" in frame.inputs), []).append(number)
    for (start, _), numbers in kinds.items():
        size = max(1, BATCH_TOKENS // (start + QUESTION_TOKENS + ANSWER_TOKENS))
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))
