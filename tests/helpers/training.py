"""Scalars to train, and what a scorer makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scale_export.training.examples import Example
from scale_export.training.options import TrainOptions, silent
from scale_export.training.parameters import ScaleParameters
from scale_export.training.scale import train_on_examples

EXACT = 1e-5
"""How far losses and gradients of two ways to the same number may lie apart."""
PAD = 0
QUICK = TrainOptions(steps=5, batch_size=8, evaluate_every=5)


def scalars(model: Any, **changes: Any) -> ScaleParameters:
    """Scalars well away from 1."""
    made = ScaleParameters(model, (0, 1, 2), **({"scope": "last"} | changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (made.heads, made.mlp):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def loss_and_gradient(
    scorer: Any, source: ScaleParameters, examples: Sequence[Example]
) -> tuple[float, Tensor]:
    scored = scorer(examples)
    gradients = torch.autograd.grad(scored.loss / scored.tokens, source.trained())
    return float(scored.loss.detach()) / scored.tokens, torch.cat([g.flatten() for g in gradients])


def trained(model: Any, examples: list[Example], **changes: Any) -> Any:
    options = replace(QUICK, **changes)
    return train_on_examples(model, options, examples[:32], examples[32:], pad_id=PAD, progress=silent)
