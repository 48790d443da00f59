"""Attention among patches that the host laid out, of whole pictures or of windows; needs torch.

Shapes: B pictures, N patches, S patches of a block, H heads, hd head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN: float = -6e4
"""What is added to the score of a patch that is not to be seen; float16 reaches to 65,504."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``q [B, N, H, hd]`` and ``k, v [B, S, H, hd]`` → ``[B, N, H·hd]``; ``mask`` broadcasts to ``[B, H, N, S]``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x [B, N, H, hd]`` by ``cos, sin [B, N, hd / 2]``, halves paired."""
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def whole_pictures(valid: Tensor) -> Tensor:
    """The mask ``[B, 1, 1, N]`` of attention over a picture, from ``valid [B, N]``: 1 for patches, 0 for filling."""
    return ((1 - valid) * HIDDEN)[:, None, None]


def windows(window: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask ``[B·blocks, 1, S, 3·S]`` of attention within windows, block by block, keys as ``with_neighbours``.

    Args:
        window: int32 ``[B, blocks, S]``, the number of a patch's window. A window is at most S patches one after the
            other, so that it lies in two neighbouring blocks at the most.
    """
    keys = with_neighbours(window.unsqueeze(-1)).squeeze(-1)
    apart = torch.logical_not(window.unsqueeze(-1) == keys.unsqueeze(-2))
    return (apart.to(dtype) * HIDDEN).flatten(0, 1).unsqueeze(1)


def with_neighbours(x: Tensor) -> Tensor:
    """``[B, blocks, S, C]`` → ``[B, blocks, 3·S, C]``: of every block the one before, itself, the one after."""
    nothing = torch.zeros_like(x[:, :1])
    if x.shape[1] == 1:
        return torch.cat((nothing, x, nothing), dim=2)
    before = torch.cat((nothing, x[:, :-1]), dim=1)
    after = torch.cat((x[:, 1:], nothing), dim=1)
    return torch.cat((before, x, after), dim=2)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm as the layer norm of x beside −x, whose mean is zero: squares never overflow float16 on their way."""
    width = weight.shape[0]
    both, weights = torch.cat((x, -x), dim=-1), torch.cat((weight, torch.zeros_like(weight)))
    return F.layer_norm(both, (2 * width,), weights, eps=epsilon)[..., :width]


class RmsNorm(Protocol):
    """Hugging Face's module."""

    weight: Tensor
    variance_epsilon: float

    def __call__(self, x: Tensor) -> Tensor: ...


def normed(norm: RmsNorm, x: Tensor) -> Tensor:
    """The same arithmetic by ``rms_norm``."""
    return rms_norm(x, norm.weight, norm.variance_epsilon)


def as_linear(convolution: torch.nn.Module) -> torch.nn.Linear:
    """A convolution whose stride is its kernel, as a matrix over flattened patches; shares its weights."""
    weight, bias = convolution.weight, getattr(convolution, "bias", None)
    assert isinstance(weight, Tensor)
    linear = torch.nn.Linear(weight[0].numel(), len(weight), bias=bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight.detach().flatten(1), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The RMS norm of x as the layer norm of x beside −x, whose mean is zero: no square ever leaves the operator."""
    width = weight.shape[0]
    weights = torch.cat((weight, torch.zeros_like(weight)))
    return F.layer_norm(torch.cat((x, -x), dim=-1), (2 * width,), weights, eps=eps)[..., :width]
