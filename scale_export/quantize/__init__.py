"""Quantization of a decoder's matrices: the methods (one file each) and weights seen through one of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace

from scale_export.core.errors import UserError, did_you_mean
from scale_export.model.blocks import Bits
from scale_export.model.folding import FoldedDecoder, FoldedWeights
from scale_export.model.weights import DecoderWeights

from . import methods
from .bits import check_bits, read_bits_plan, write_bits_plan
from .equalize import group_of
from .method import CalibrationOptions, Method, Moments, NoStatistics, Statistics
from .static import StaticKernels, StaticWeights
from .views import QuantizedWeights

__all__ = [
    "CalibrationOptions",
    "Method",
    "Moments",
    "NoStatistics",
    "QuantizedWeights",
    "StaticKernels",
    "StaticWeights",
    "Statistics",
    "check_bits",
    "group_of",
    "load_quantizer",
    "quantize",
    "quantizer_names",
    "read_bits_plan",
    "write_bits_plan",
]


def quantizer_names() -> list[str]:
    """Every method, one per file of ``methods``."""
    return sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if not m.name.startswith("_"))


def load_quantizer(name: str) -> Method:
    """The method of that name: ``METHOD`` in the file of ``methods`` that is called so.

    Raises:
        UserError: there is none.
    """
    known = quantizer_names()
    if name not in known:
        raise UserError(
            f"unknown quantizer {name!r}{did_you_mean(name, known)}; known quantizers: {', '.join(known)}"
        )
    method: Method = importlib.import_module(f"{methods.__name__}.{name}").METHOD
    return method


def quantize(
    folded: FoldedDecoder,
    quantizer: Method,
    *,
    bits: Bits,
    block_size: int,
    statistics: Statistics | None = None,
    other_bits: Mapping[str, Bits] | None = None,
    kind: type[QuantizedWeights] = QuantizedWeights,
    held: bool = False,
) -> FoldedDecoder:
    """The same decoder with its base weights quantized (``kind``) and the factors moved into block scales.

    ``held`` keeps each matrix once it is quantized, for models that fit into memory.
    """
    plain = folded.weights.base if isinstance(folded.weights, FoldedWeights) else folded.weights
    base = kind.prepared(
        plain,
        quantizer,
        bits=bits,
        block_size=block_size,
        statistics=statistics,
        other_bits=other_bits,
        held=held,
    )

    def packed(weights: DecoderWeights) -> QuantizedWeights:
        return replace(base, factors=weights.factors if isinstance(weights, FoldedWeights) else {})

    scaled = None if folded.scaled is None else packed(folded.scaled)
    return replace(folded, weights=packed(folded.weights), scaled=scaled)
