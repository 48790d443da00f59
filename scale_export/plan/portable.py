"""A plan's generator, and the portable decoder as an engine."""

from __future__ import annotations

from collections.abc import Callable

from scale_export.device.engine import Engine, Scalars
from scale_export.device.generation import Generator
from scale_export.model.arithmetic import TorchKernels
from scale_export.model.engine import ReferenceEngine
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import DecoderWeights

from .record import Plan


def generator_of(plan: Plan, engine: Engine) -> Generator:
    """An engine with a plan's family rules and fold mode."""
    base = plan.base
    return Generator(
        engine=engine,
        family=base.family,
        fold=plan.fold,
        image_token_id=base.image_token_id,
        runtime_config=base.family.runtime_config(base.config),
    )


def reference_engine(
    plan: Plan, folded: FoldedDecoder, kernels: Callable[[DecoderWeights], TorchKernels] = TorchKernels
) -> ReferenceEngine:
    """The portable decoder in float32 on the weights of ``folded``."""
    base = plan.base
    attn, mlp = folded.dense()
    return ReferenceEngine(
        folded.weights,
        scaled=folded.scaled,
        vision=base.vision,
        image_token_id=base.image_token_id,
        gate=(folded.coefficients.scope, Scalars(attn=attn, mlp=mlp)) if folded.gate else None,
        kernels=kernels,
    )
