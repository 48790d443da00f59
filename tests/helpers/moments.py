"""Made-up statistics of a matrix's inputs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from scale_export.core.records import DecoderSpec
from scale_export.quantize import Moments
from scale_export.quantize.equalize import group_of


@functools.cache
def correlated(width: int, seed: int = 0, tokens: int = 400) -> Moments:
    """Moments of inputs with a few loud channels, all mixed with one another."""
    rng = np.random.default_rng(seed)
    loudness = np.exp(rng.normal(0, 1.5, width))
    x = (rng.standard_normal((tokens, width // 4)) @ rng.standard_normal((width // 4, width))) * loudness
    x += 0.1 * rng.standard_normal((tokens, width)) * loudness
    return Moments((x.T @ x / tokens).astype(np.float32))


class Correlated:
    """Statistics for every matrix, the same for those that share their inputs."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec

    def moments(self, name: str) -> Moments | None:
        if name == "embedding":
            return None
        first = group_of(name)[0]
        return correlated(self.spec.linears()[first][1], seed=len(first) + ord(first[-6]))

    def peaks(self, name: str) -> Any:
        moments = self.moments(name)
        return None if moments is None else 4 * np.sqrt(moments.diagonal)
