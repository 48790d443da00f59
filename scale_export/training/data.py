"""The questions of a training run: those to learn from, and those that are replayed against forgetting.

Everything is decided here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scale_export.core.errors import UserError
from scale_export.core.words import Split
from scale_export.questions import is_generated, load_questions
from scale_export.questions.question import Question

from .options import TrainOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuestions:
    """What a run learns from and is measured on.

    Attributes:
        splits: ``train``, ``validation`` and the split of the final table.
        options: those that were given, ``replay`` decided.
        decision: where replayed questions come from, as a sentence.
    """

    splits: Mapping[Split, Sequence[Question]]
    options: TrainOptions
    decision: str


def training_questions(options: TrainOptions) -> TrainingQuestions:
    """Load the questions, and decide what is replayed.

    Raises:
        UserError: a set that can't be loaded, a split without questions, no spatial question to train on, or a replay
            that was asked for and has no question.
    """
    own: dict[Split, list[Question]] = {
        split: load_questions(options.data, split, limit=options.limit) for split in _splits(options)
    }
    if empty := [split for split, found in own.items() if not found]:
        raise UserError(f"{options.data!r} has no questions in its {empty[0]} split; give another set")
    if not any(q.kind == "spatial" for q in own["train"]):
        raise UserError(
            f"{options.data!r} has no spatial questions in its train split, and they are what ScAle trains on: give "
            f"another set with --data"
        )
    if options.replay_data is not None:
        return _from_another(own, options, options.replay_data)
    others = sum(q.kind == "other" for q in own["train"])
    if others:
        share = options.replay_share
        said = f"{share:.0%} of each batch are the set's own non-spatial questions ({others:,} to train on)."
        return TrainingQuestions(splits=own, options=replace(options, replay=share), decision=said)
    if options.replay:
        raise UserError(
            f"--replay {options.replay:g} is refused: {options.data!r} has spatial questions alone; name a set with "
            f"others by --replay-data, or give --replay 0"
        )
    said = (
        f"Nothing is replayed against forgetting, since {options.data!r} has spatial questions alone: --replay-data "
        f"names a set that has others, such as coco_qa_2015:DIR, or gridworld, which needs nothing from a disk."
    )
    return TrainingQuestions(splits=own, options=replace(options, replay=0.0), decision=said)


def _splits(options: TrainOptions) -> tuple[Split, ...]:
    return tuple(dict.fromkeys(("train", "validation", options.report_split)))


def _from_another(
    own: Mapping[Split, Sequence[Question]], options: TrainOptions, source: str
) -> TrainingQuestions:
    """The spatial questions of one set, the others of another."""
    share = options.replay_share
    if share == 0:
        raise UserError(
            f"--replay-data {source} is refused beside --replay 0, which replays nothing: drop one"
        )
    splits: dict[Split, list[Question]] = {}
    for split, found in own.items():
        others = _others(source, split, options.limit)
        if not others:
            raise UserError(
                f"--replay-data {source} is refused: it has no non-spatial questions in its {split} split; name a set "
                f"that has some, such as coco_qa_2015:DIR or gridworld"
            )
        splits[split] = [*(q for q in found if q.kind == "spatial"), *others]
    count = sum(q.kind == "other" for q in splits["train"])
    said = f"{share:.0%} of each batch are non-spatial questions of {source} ({count:,} to train on)."
    if is_generated(source):
        said += " They are about generated pictures, and guard what such questions ask."
    return TrainingQuestions(splits=splits, options=replace(options, replay=share), decision=said)


def _others(source: str, split: Split, limit: int | None) -> list[Question]:
    """The first ``limit`` non-spatial questions of a split, reading no more of it than it takes where that helps."""
    for read in (None,) if limit is None else (8 * limit, None):
        found = [q for q in load_questions(source, split, limit=read) if q.kind == "other"][:limit]
        if len(found) == limit:
            break
    return found
