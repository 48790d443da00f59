"""Gemma 3's projector; needs torch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from scale_export.core.errors import UserError

from .attention import fused_rms_norm


class _SoftNorm(Protocol):
    eps: float
    weight: Tensor


class Gemma3Projector(Protocol):
    """Hugging Face's module."""

    tokens_per_side: int
    kernel_size: int
    patches_per_image: int
    mm_soft_emb_norm: _SoftNorm
    mm_input_projection_weight: Tensor


class PooledProjector(nn.Module):
    """Gemma 3's projector: squares of k × k patches averaged, a norm, one matrix.

    Hugging Face's module squares activations on the way, which float16 does not hold; the norm here is a fused one.
    """

    def __init__(self, projector: Gemma3Projector):
        super().__init__()
        self.side: int = projector.tokens_per_side
        self.kernel: int = projector.kernel_size
        if self.side * self.kernel != projector.patches_per_image:
            raise UserError(
                f"a Gemma 3 tower of {projector.patches_per_image} patches per side does not divide into "
                f"{self.side} rows of tokens: mm_tokens_per_image of the config doesn't fit its vision tower"
            )
        self.eps: float = projector.mm_soft_emb_norm.eps
        self.weight = nn.Parameter(1 + projector.mm_soft_emb_norm.weight.detach(), requires_grad=False)
        self.matrix = nn.Parameter(projector.mm_input_projection_weight.detach(), requires_grad=False)

    def forward(self, patches: Tensor) -> Tensor:
        """``[tiles, (side · k)², C]`` → ``[tiles, side², D]``."""
        side, kernel, width = self.side, self.kernel, patches.shape[-1]
        rows = patches.reshape(-1, side, kernel, side * kernel * width).mean(dim=2)
        pooled = rows.reshape(-1, side * side, kernel, width).mean(dim=2)
        return torch.matmul(fused_rms_norm(pooled, self.weight, self.eps), self.matrix)
