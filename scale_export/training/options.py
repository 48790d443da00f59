"""What a training run may be asked for, and how it says how far it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.words import Scope, Split

TrainedSites = Literal["heads", "mlp", "both"]
SITES: tuple[str, ...] = get_args(TrainedSites)
SCOPES: tuple[str, ...] = get_args(Scope)


class ProgressCallback(Protocol):
    """Told after every step of a stage; ``note`` is a short figure such as the loss."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The progress callback that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of ``scale-export train``; the defaults work on the shipped model.

    Attributes:
        data: a question set, ``NAME`` or ``NAME:ARGUMENT``.
        bound: r in s = 1 + r·tanh(a).
        layers: the decoder layers to train, all by default; ``select`` chooses among them.
        sites: which scalars move; the others stay 1.
        replay: share of non-spatial questions in every batch, against forgetting.
        evaluate_every: steps between two looks at the validation split.
        patience: looks without a better validation loss before the run stops; None never stops early.
            The best scalars seen are kept either way.
        select: train only the K layers that hold the most sensitive scalars.
        delta: how far the sensitivity ranking moves each scalar from 1, both ways.
        limit: at most so many questions of each split.
        baselines: also train LoRA and IA3 on the same batches.
        report_split: where the final table is measured. The validation split also chose the stopping step;
            the test split has been seen by nothing.
        cache_mib: memory for cached prefixes under scope ``last``, in MiB; prefixes beyond it are recomputed.
    """

    data: str = "gridworld"
    scope: Scope = "last"
    bound: float = 1.0
    layers: tuple[int, ...] | None = None
    sites: TrainedSites = "both"
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.08
    replay: float = 0.3
    seed: int = 0
    evaluate_every: int = 20
    patience: int | None = 5
    select: int | None = None
    delta: float = 0.25
    limit: int | None = None
    baselines: bool = False
    report_split: Split = "validation"
    cache_mib: int = 512

    def __post_init__(self) -> None:
        for name, value, known in (("scope", self.scope, SCOPES), ("sites", self.sites, SITES)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise UserError(f"{name} is {value!r}{hint}; give one of {', '.join(known)}")
        for name in ("steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")
        for name in ("patience", "select", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; give a whole number of at least 1, or leave it out")
        for name in ("bound", "learning_rate", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} is {value}; give a number above 0")
        if not 0 <= self.replay < 1:
            raise UserError(f"replay is {self.replay}; give a share of non-spatial questions in [0, 1)")
        if self.cache_mib < 0:
            raise UserError(f"cache_mib is {self.cache_mib}; give the cache's size in MiB, 0 for none")
