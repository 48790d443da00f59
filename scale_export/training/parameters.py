"""The trained scalars: s = 1 + r·tanh(a), with a = 0 at the start (``docs/scale.md``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model
from scale_export.core.records import Float32
from scale_export.core.words import Scope
from scale_export.model.sites import head_count

from .options import TrainedSites


class ScaleParameters:
    """A ``ScaleSource`` over free parameters ``a``: ``heads [nL, H]`` and ``mlp [nL]``, float32."""

    def __init__(
        self,
        model: Model,
        layer_indices: tuple[int, ...],
        *,
        scope: Scope,
        bound: float = 1.0,
        sites: TrainedSites = "both",
    ) -> None:
        self.scope: Scope = scope
        self.layer_indices = layer_indices
        self.bound = bound
        shape = (len(layer_indices), head_count(model))
        self.heads = torch.zeros(shape, device=model.device, requires_grad=sites != "mlp")
        self.mlp = torch.zeros(shape[:1], device=model.device, requires_grad=sites != "heads")

    def effective(self) -> tuple[Sequence[Tensor], Tensor]:
        """The effective s, differentiable in the free parameters."""
        return tuple(self._s(self.heads)), self._s(self.mlp)

    def trained(self) -> list[Tensor]:
        """The parameters that an optimizer moves."""
        return [p for p in (self.heads, self.mlp) if p.requires_grad]

    @property
    def count(self) -> int:
        """How many scalars are trained."""
        return sum(p.numel() for p in self.trained())

    def arrays(self) -> tuple[Float32, Float32]:
        """The effective s as float32 arrays ``[nL, H]`` and ``[nL]``."""
        heads, mlp = (self._s(p).detach().cpu().numpy().copy() for p in (self.heads, self.mlp))
        return heads, mlp

    def _s(self, free: Tensor) -> Tensor:
        return 1.0 + self.bound * torch.tanh(free)


class ProbeScales:
    """A ``ScaleSource`` of ones in which a prober moves single scalars: ``heads [nL, H]``, ``mlp [nL]``."""

    def __init__(self, model: Model, layer_indices: tuple[int, ...], *, scope: Scope) -> None:
        self.scope: Scope = scope
        self.layer_indices = layer_indices
        self.heads = torch.ones(len(layer_indices), head_count(model))
        self.mlp = torch.ones(len(layer_indices))

    def effective(self) -> tuple[Sequence[Tensor], Tensor]:
        return tuple(self.heads), self.mlp


def chosen_layers(count: int, layers: tuple[int, ...] | None, select: int | None = None) -> tuple[int, ...]:
    """The decoder layers to train, sorted; all of them for None.

    Args:
        count: how many the model has.
        layers: those that were asked for.
        select: how many of them a ranking is to keep.

    Raises:
        UserError: a layer that the model lacks, none at all, or more to keep than there are.
    """
    found = _checked(count, layers)
    if select is not None and select > len(found):
        raise UserError(f"--select {select} is refused: only {len(found)} layers are trained; give fewer")
    return found


def _checked(count: int, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(count))
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong or not layers:
        which = f"layer {wrong[0]}" if wrong else "an empty list of layers"
        raise UserError(f"cannot train {which}: the model has decoder layers 0 to {count - 1}")
    return tuple(sorted(set(layers)))
