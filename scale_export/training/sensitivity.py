"""Which scalars the spatial skill listens to: each is moved a little, alone, and the loss is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from scale_export.core.errors import UserError
from scale_export.core.records import Float32

from .examples import Example
from .loop import KindScore, Scorer, score_by_kind
from .options import ProgressCallback, TrainedSites, TrainOptions
from .parameters import ProbeScales


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The table of a probe over the spatial validation questions.

    The last axis of every array is a scalar of the layer: the H query heads, then the MLP. Entries of sites
    that were not probed are NaN.

    Attributes:
        layer_indices: the probed decoder layers, one row each.
        delta: how far each scalar was moved from 1.
        loss: the loss at s = 1 everywhere, mean per token.
        exact: the share of exact answers there.
        loss_change: float32 ``[2, nL, H + 1]``, by s = 1 + delta and by s = 1 − delta.
        exact_change: the same for the share of exact answers.
    """

    layer_indices: tuple[int, ...]
    delta: float
    loss: float
    exact: float
    loss_change: Float32
    exact_change: Float32

    @property
    def strength(self) -> Float32:
        """``[nL, H + 1]`` float32: the larger loss change of the two moves, without its sign."""
        strength: Float32 = np.abs(self.loss_change).max(axis=0)
        return strength

    @property
    def signed(self) -> Float32:
        """``strength`` with a sign: negative where turning the scalar up lowers the loss."""
        up, down = self.loss_change
        signed: Float32 = np.copysign(self.strength, up - down)
        return signed

    def ranking(self) -> list[tuple[int, int, float]]:
        """(layer, head, strength) from the most sensitive down; head H is the MLP."""
        rows = [
            (layer, column, float(value))
            for layer, values in zip(self.layer_indices, self.strength, strict=True)
            for column, value in enumerate(values)
            if np.isfinite(value)
        ]
        return sorted(rows, key=lambda row: -row[2])

    def top_layers(self, count: int) -> tuple[int, ...]:
        """The ``count`` layers whose most sensitive scalars rank highest, in their order; see ``chosen_layers``."""
        return tuple(sorted(list(dict.fromkeys(layer for layer, _, _ in self.ranking()))[:count]))


@torch.no_grad()
def measure_sensitivity(
    scorer: Scorer,
    probe: ProbeScales,
    examples: Sequence[Example],
    *,
    options: TrainOptions,
    progress: ProgressCallback,
) -> Sensitivity:
    """Move every scalar of ``probe`` to 1 ± delta and back, one at a time; ``scorer`` must run on ``probe``.

    Raises:
        UserError: no spatial question among the examples, or a loss on them that is not finite.
    """
    spatial = [e for e in examples if e.question.kind == "spatial"]
    if not spatial:
        raise UserError(
            "the validation split has no spatial questions to rank layers with: leave out --select"
        )

    def measure() -> KindScore:
        return score_by_kind(scorer, spatial, 2 * options.batch_size)["spatial"]

    base = measure()
    if not math.isfinite(base.loss):
        raise UserError(
            f"the model's loss on the spatial questions is {base.loss}, so that no layer can be ranked by it: check "
            f"the base model's weights"
        )
    layers, heads = probe.heads.shape
    changes: Float32 = np.full((2, 2, layers, heads + 1), np.nan, np.float32)
    moves = list(product(range(layers), _columns(options.sites, heads), (0, 1)))
    for done, (row, column, sign) in enumerate(moves, 1):
        scalars, place = (probe.mlp, row) if column == heads else (probe.heads[row], column)
        scalars[place] = 1 - options.delta if sign else 1 + options.delta
        moved = measure()
        scalars[place] = 1
        changes[:, sign, row, column] = moved.loss - base.loss, moved.exact - base.exact
        progress("sensitivity", done, len(moves))
    return Sensitivity(
        layer_indices=probe.layer_indices,
        delta=options.delta,
        loss=base.loss,
        exact=base.exact,
        loss_change=changes[0],
        exact_change=changes[1],
    )


def _columns(sites: TrainedSites, heads: int) -> range:
    """The columns of the table that are probed."""
    return range(heads if sites == "mlp" else 0, heads if sites == "heads" else heads + 1)
