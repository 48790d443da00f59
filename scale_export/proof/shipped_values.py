"""The portable decoder on the values that a quantized package holds, so that nothing but its graph is compared.

Rules:
1. Matrices are dequantized from the plan's own codes, with block scales rounded to the type that files store them in;
   so are norms and biases. The package's files are not read for it: what they hold wrongly would excuse itself.
2. What enters the decoder comes from the package's own tower and table, which are held on their own: ``front_errors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scale_export.core.compare import LargestError, relative_error
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.records import Array, DecoderSpec, Float32
from scale_export.core.words import FloatType, Precision
from scale_export.device.engine import Engine, Held, Phase, Scalars, Step
from scale_export.device.generation import Generator, Inputs
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights, StaticWeights

from .cases import Case

FEATURES = "max |Δ| / max |feature| of the vision tower"
PROMPTS = "max |Δ| / max |value| of embedded prompts, on the same features"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValues:
    """Quantized weights as files of ``dtype`` hold them (rule 1)."""

    base: QuantizedWeights
    dtype: FloatType

    @property
    def spec(self) -> DecoderSpec:
        return self.base.spec

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(torch.float16).to(torch.float32) if self.dtype == "float16" else values

    def matrix(self, name: str) -> Tensor:
        block = self.base.block(name)
        scales = self._rounded(torch.from_numpy(block.scales)).numpy()
        return torch.from_numpy(replace(block, scales=scales).dequantize())

    def bias(self, name: str) -> Tensor | None:
        bias = self.base.bias(name)
        return None if bias is None else self._rounded(bias)

    def norm(self, name: str) -> Tensor:
        return self._rounded(self.base.norm(name))

    def embedding(self) -> Tensor:
        return self.matrix("embedding")


def as_stored(decoder: FoldedDecoder, dtype: FloatType) -> FoldedDecoder:
    """The decoder on the values that its files hold: ``dtype`` beside integer codes in blocks."""

    def rounded(weights: DecoderWeights) -> DecoderWeights:
        if isinstance(weights, QuantizedWeights) and not isinstance(weights, StaticWeights):
            return StoredValues(base=weights, dtype=dtype)
        return weights

    scaled = None if decoder.scaled is None else rounded(decoder.scaled)
    return replace(decoder, weights=rounded(decoder.weights), scaled=scaled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grafted:
    """An engine whose prompts are embedded by another one (rule 2)."""

    front: Engine
    decoder: Engine

    @property
    def hidden_size(self) -> int:
        return self.decoder.hidden_size

    @property
    def executed_by(self) -> str:
        return self.decoder.executed_by

    @property
    def can_override(self) -> bool:
        return self.decoder.can_override

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.front.vision(inputs)

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        return self.front.embed(input_ids, image_features)

    def new_cache(self, rows: int) -> Any:
        return self.decoder.new_cache(rows)

    def held_cache(self, held: Held) -> Any:
        return self.decoder.held_cache(held)

    def cut(self, cache: Any, tokens: int) -> None:
        self.decoder.cut(cache, tokens)

    def keys(self, layer: int, step: Step, phase: Phase) -> Float32 | None:
        return self.decoder.keys(layer, step, phase)

    def forward(self, cache: Any, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        return self.decoder.forward(cache, step, scalars, phase)


def front_errors(
    cases: Sequence[Case], package: Generator, oracle: Generator, tower: Precision, table: FloatType
) -> list[LargestError]:
    """What the package's tower and table give, against the base's tower and the table that it is said to hold.

    Args:
        package: the package's files on strict kernels.
        oracle: the portable decoder's, on the values that the package holds.
        tower: what the package's tower computes in.
        table: what its embedding graph computes in.
    """
    features, prompts = [], []
    for case in cases:
        ids = case.inputs["input_ids"].astype(np.int64)
        given = np.zeros((0, package.engine.hidden_size), np.float32)
        if "pixel_values" in case.inputs:
            own, expected = (_pictures(generator, case.inputs) for generator in (package, oracle))
            features += [relative_error(e, o) for e, o in zip(expected, own, strict=True)]
            given = own[0]
        rows = [generator.engine.embed(ids, given) for generator in (oracle, package)]
        prompts.append(relative_error(*rows))
    held = [(FEATURES, features, LOWERING_RELATIVE[tower]), (PROMPTS, prompts, LOWERING_RELATIVE[table])]
    return [
        LargestError(metric=metric, value=float(np.max(errors)), limit=limit)
        for metric, errors, limit in held
        if errors
    ]


def _pictures(generator: Generator, inputs: Inputs) -> list[Float32]:
    """The features of a prompt's pictures ``[image tokens, D]``, and what they add to layers, where they do."""
    family, runtime = generator.family, generator.runtime_config
    outputs = generator.engine.vision(family.tower_inputs(inputs, runtime))
    layers = family.deepstack(outputs, inputs, runtime)
    found = [family.pack(outputs, inputs, runtime), *([] if layers is None else [layers])]
    return [np.asarray(values, np.float32) for values in found]
