"""The portable decoder run by hand, and what it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.model.arithmetic import TorchKernels, empty_cache
from scale_export.model.base import BaseModel
from scale_export.model.decoder import Gate, PortableDecoder


def relative(reference: Tensor, other: Tensor) -> float:
    return float((reference - other).abs().max() / reference.abs().max())


def embeddings_of(base: BaseModel, inputs: dict[str, Any]) -> Tensor:
    """``inputs_embeds`` as Hugging Face computes them, pictures merged in."""
    caught: list[Tensor] = []
    handle = base.model.get_submodule(base.family.text_prefix).register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        base.model(**inputs)
    handle.remove()
    return caught[0]


def gate_of(base: BaseModel, coefficients: Coefficients) -> Gate:
    attn, mlp = coefficients.dense(base.spec.num_layers, base.spec.num_heads)
    return Gate(scope=coefficients.scope, attn_scale=torch.from_numpy(attn), mlp_scale=torch.from_numpy(mlp))


def last_logits(base: Any, weights: Any, gate: Any = None) -> torch.Tensor:
    embeds = torch.randn(1, 11, base.spec.hidden_size, generator=torch.Generator().manual_seed(3))
    decoder = PortableDecoder(base.spec, TorchKernels(weights))
    ones = torch.ones(1, 11, dtype=torch.int64)
    cache = empty_cache(base.spec, 1)
    return decoder(embeds, ones, torch.arange(11)[None], cache, gate, torch.tensor([-1]))[0][:, -1]
