"""A reference that goes on from a graph's own products, for graphs whose products round their inputs.

Where two runs differ in the last bit, a rounded input now and then differs by a whole code, and everything after it
by as much: compared end to end, such graphs agree to the size of a code, not to that of float arithmetic. So the
reference is given what went into each product of the graph, and goes on from what came out of it: each product, and
whatever lies between two of them, answers for itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scale_export.model.streaming import StreamedKernels
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import StaticWeights

from .products import Forward


class Lockstep:
    """The reference's products beside those of a graph on strict kernels.

    ``forwards``, by the same matrices as ``found``: what the reference gives each (from the graph's products before
    it), and its product of what the graph gave it.
    """

    def __init__(self, found: Sequence[Forward]) -> None:
        self.found = found
        self.forwards: list[Forward] = []

    def begin(self) -> None:
        """A new forward."""
        self.forwards.append({})

    def kernels(self, weights: DecoderWeights) -> StreamedKernels:
        """For the reference's engine: one weight in memory at a time."""
        assert isinstance(weights, StaticWeights), "products round their inputs"
        return _LockstepKernels(weights, self)


class _LockstepKernels(StreamedKernels):
    def __init__(self, weights: StaticWeights, lockstep: Lockstep) -> None:
        super().__init__(weights)
        self.weights = weights
        self.lockstep = lockstep

    def linear(self, name: str, x: Tensor) -> Tensor:
        forwards = self.lockstep.forwards
        given, found = (torch.from_numpy(side) for side in self.lockstep.found[len(forwards) - 1][name])
        forwards[-1][name] = x.numpy(), self.weights.product(name, given).numpy()
        return found
