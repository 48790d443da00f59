"""Integer products on both sides (``w8a8``): int8 weights with a scale for each output channel, and inputs that are
rounded to int8 by one scale each, which calibration fixed.

x ≈ step · clip(⌊x / step⌉, −128, 127), half to even as ONNX's QuantizeLinear rounds; step = max|x| / 127 over
calibration. Both sides are symmetric, without zero points, as TensorRT wants them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scale_export.core.records import Float32
from scale_export.model.arithmetic import TorchKernels
from scale_export.model.blocks import BlockMatrix
from scale_export.model.folding import fold_blocks

from .grid import symmetric
from .views import QuantizedWeights

LOWEST, HIGHEST = -128, 127


def input_step(peaks: Float32) -> np.float32:
    """The distance of two codes of inputs whose channels reach ``peaks [in]``; 1 where all are silent."""
    loudest = np.float32(peaks.max())
    return loudest / np.float32(HIGHEST) if loudest > 0 else np.float32(1)


def rounded_inputs(x: Tensor, step: float) -> Tensor:
    """What a product sees of ``x``: float32, on the grid of int8 codes."""
    scale = torch.tensor(step, dtype=torch.float32)
    return (x / scale).round().clamp(LOWEST, HIGHEST) * scale


@dataclass(frozen=True, kw_only=True)
class StaticWeights(QuantizedWeights):
    """Quantized weights whose products have rounded inputs too; the embedding table stays as it is.

    ``bits`` is 8 and ``block_size`` unused: a matrix is a ``BlockMatrix`` of one block, its whole row. Folding reaches
    it where all input columns have one factor; see ``folding``.
    """

    def step(self, name: str) -> np.float32:
        """The distance of two codes of a matrix's inputs; the same for matrices that share them."""
        peaks = self.statistics.peaks(name)
        assert peaks is not None, "the plan asks for calibration"
        return input_step(peaks)

    def pack(self, name: str) -> BlockMatrix:
        weight = self.base.matrix(name).numpy()
        packed, factor = symmetric(weight, 8, weight.shape[1]), self.factors.get(name)
        return packed if factor is None else fold_blocks(name, packed, factor)

    def embedding(self) -> Tensor:
        return self.base.embedding()

    def product(self, name: str, x: Tensor) -> Tensor:
        """``x [..., in]`` → ``[..., out]``, as the integers give it."""
        return F.linear(rounded_inputs(x, float(self.step(name))), self.matrix(name), self.bias(name))


class StaticKernels(TorchKernels):
    """The reference's arithmetic with every product's input rounded."""

    def __init__(self, weights: StaticWeights) -> None:
        super().__init__(weights)
        self.steps = {name: float(weights.step(name)) for name in weights.spec.linears()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return super().linear(name, rounded_inputs(x, self.steps[name]))
