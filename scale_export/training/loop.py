"""The training loop: balanced batches, cross entropy on the answers, early stop on the validation split."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model
from scale_export.model.hooks import ScaleHandle
from scale_export.questions.question import Kind

from .examples import IGNORED, Batch, Example, whole_sequences
from .options import ProgressCallback, TrainOptions
from .prefix import PrefixStore

KINDS: tuple[Kind, ...] = ("spatial", "other")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """How a batch went, tokens fed in from the right answers.

    Attributes:
        loss: the summed cross entropy over the answers' tokens; differentiable.
        tokens: how many tokens that is.
        exact: bool ``[B]``, where every token was the best one: greedy generation would give this answer.
    """

    loss: Tensor
    tokens: int
    exact: Tensor


class Scorer(Protocol):
    """Runs the model on examples."""

    def __call__(self, examples: Sequence[Example]) -> Score: ...


def score(model: Model, batch: Batch) -> Score:
    """One forward over a batch; logits are asked for from its first target on."""
    first = int((batch.targets != IGNORED).any(dim=0).int().argmax())
    targets = batch.targets[:, first:]
    logits = model(**batch.inputs, logits_to_keep=targets.shape[1]).logits.float()
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    right = (logits.argmax(-1) == targets) | (targets == IGNORED)
    return Score(loss=loss, tokens=int((targets != IGNORED).sum()), exact=right.all(dim=1))


class FullScorer:
    """Prompt and answer in one forward. ``handle`` is that of attached scalars, None without any."""

    def __init__(self, model: Model, handle: ScaleHandle | None, pad_id: int) -> None:
        self._model = model
        self._handle = handle
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> Score:
        batch = whole_sequences(examples, self._pad_id)
        if self._handle is not None:
            self._handle.gate_mask = batch.gate
        return score(self._model, batch)


class PrefixScorer:
    """The short forward over cached prefixes: the same loss as ``FullScorer`` under scope ``last``."""

    def __init__(self, model: Model, handle: ScaleHandle, store: PrefixStore) -> None:
        self._model = model
        self._handle = handle
        self._store = store

    def __call__(self, examples: Sequence[Example]) -> Score:
        batch = self._store.batch(examples, self._handle)
        self._handle.gate_mask = batch.gate
        return score(self._model, batch)


def batches(examples: Sequence[Example], options: TrainOptions) -> Iterator[list[Example]]:
    """Batches without end: ``replay`` of each is non-spatial; a question comes once per round of its kind.

    Raises:
        UserError: a kind of question that the batches need is missing.
    """
    replayed = round(options.batch_size * options.replay_share)
    wanted = {"spatial": options.batch_size - replayed, "other": replayed}
    rng = random.Random(options.seed)
    streams: dict[str, Iterator[Example]] = {}
    for kind in KINDS:
        of_kind = [e for e in examples if e.question.kind == kind]
        if wanted[kind] and not of_kind:
            way_out = (
                "set replay to 0 or name replay_data" if kind == "other" else "train on a set that has some"
            )
            raise UserError(f"{options.data!r} has no {kind} questions in its train split; {way_out}")
        streams[kind] = _rounds(of_kind, rng)
    while True:
        yield [next(streams[kind]) for kind in KINDS for _ in range(wanted[kind])]


def _rounds(examples: list[Example], rng: random.Random) -> Iterator[Example]:
    while True:
        yield from rng.sample(examples, len(examples))


@dataclass(frozen=True, slots=True, kw_only=True)
class KindScore:
    """Mean loss per token and share of exact answers over the questions of one kind."""

    loss: float
    exact: float
    questions: int


@torch.no_grad()
def score_by_kind(scorer: Scorer, examples: Sequence[Example], batch_size: int) -> dict[Kind, KindScore]:
    """The scores of each kind that occurs."""
    scores: dict[Kind, KindScore] = {}
    for kind in KINDS:
        of_kind = [e for e in examples if e.question.kind == kind]
        parts = [scorer(of_kind[i : i + batch_size]) for i in range(0, len(of_kind), batch_size)]
        if parts:
            scores[kind] = KindScore(
                loss=sum(float(p.loss) for p in parts) / sum(p.tokens for p in parts),
                exact=sum(int(p.exact.sum()) for p in parts) / len(of_kind),
                questions=len(of_kind),
            )
    return scores


def mixed_loss(scores: Mapping[Kind, KindScore], replay: float) -> float:
    """The validation loss: spatial and other weighed as the batches weigh them."""
    weights = {"spatial": 1 - replay, "other": replay}
    total = sum(weights[kind] for kind in scores)
    if total == 0:
        return next(iter(scores.values())).loss
    return sum(weights[kind] * s.loss for kind, s in scores.items()) / total


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at the validation split; ``train_loss`` is the mean since the last look, None at the first."""

    step: int
    train_loss: float | None
    validation_loss: float
    validation: Mapping[Kind, KindScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The course of a run; ``best_step`` is the one whose parameters were kept, 0 for the start."""

    history: tuple[Look, ...]
    best_step: int
    steps: int


def fit(
    scorer: Scorer,
    parameters: Sequence[Tensor],
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    options: TrainOptions,
    progress: ProgressCallback,
    stage: str = "train",
) -> Fit:
    """Adam on ``parameters`` in place; on return they are those of the best validation loss seen.

    Raises:
        UserError: as ``batches``, a validation split without questions, or a loss on it that is not finite before any
            step, which no later one would count as better than.
    """
    if not validation:
        raise UserError(f"{options.data!r} has no validation questions; give a set that has some")
    optimizer = torch.optim.Adam(list(parameters), lr=options.learning_rate)
    history = [_look(scorer, validation, options, 0, None)]
    if not math.isfinite(history[0].validation_loss):
        raise UserError(
            f"the model's loss on the validation questions of {options.data!r} is {history[0].validation_loss}, so "
            f"that nothing can be trained by it: check the base model's weights"
        )
    best, kept = history[0], [p.detach().clone() for p in parameters]
    losses: list[float] = []
    stream, step = batches(train, options), 0
    for step in range(1, options.steps + 1):
        losses.append(_step(scorer, next(stream), optimizer))
        progress(stage, step, options.steps, f"loss {losses[-1]:.3f}")
        if step % options.evaluate_every and step != options.steps:
            continue
        look = _look(scorer, validation, options, step, sum(losses) / len(losses))
        history.append(look)
        losses.clear()
        if look.validation_loss < best.validation_loss:
            best, kept = look, [p.detach().clone() for p in parameters]
        elif options.patience and step - best.step >= options.patience * options.evaluate_every:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return Fit(history=tuple(history), best_step=best.step, steps=step)


def _step(scorer: Scorer, examples: Sequence[Example], optimizer: torch.optim.Optimizer) -> float:
    scored = scorer(examples)
    loss = scored.loss / scored.tokens
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


def _look(
    scorer: Scorer, validation: Sequence[Example], options: TrainOptions, step: int, train_loss: float | None
) -> Look:
    scores = score_by_kind(scorer, validation, 2 * options.batch_size)
    loss = mixed_loss(scores, options.replay_share)
    return Look(step=step, train_loss=train_loss, validation_loss=loss, validation=scores)
