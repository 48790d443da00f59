"""What every backend's tests need: emitted graphs of random models, and the portable decoder to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scale_export.backends.interface import Emission, GraphBackend
from scale_export.core.progress import WorkLog
from scale_export.core.words import FloatType, FoldMode, Precision
from scale_export.device.engine import Engine, Scalars
from scale_export.device.generation import Generator
from scale_export.device.onnxruntime.engine import DecoderSession, open_session
from scale_export.device.onnxruntime.host import read_runtime_config
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.model.engine import ReferenceEngine
from scale_export.model.folding import FoldedDecoder, fold
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from scale_export.plan.weights import PlannedWeights, plan_statistics
from tests.helpers.coefficients import random_coefficients
from tests.helpers.pictures import picture

TOKENS = (3, 9, 4, 7)

Emitted = tuple[Plan, FoldedDecoder, dict[str, Path]]
Emit = Callable[..., Emitted]


def emitting(
    target: str, backend: GraphBackend, base_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Emit:
    """``emitted(family, variant, precision, mode, scope)``: graphs on disk, built once each."""

    @functools.cache
    def build(
        family: str = "llava",
        variant: str = "llama",
        precision: Precision = "float32",
        mode: FoldMode = "gate",
        scope: Any = "last",
        activations: FloatType | None = None,
    ) -> Emitted:
        base = base_of(family, variant)
        chosen = load_target(target)
        asked = precision if precision in chosen.precisions else chosen.precisions[0]
        options = ExportOptions(precision=asked, activations=activations, fold=mode, calib="none")
        plan = make_plan(random_coefficients(base, scope), base, chosen, options)
        folded = stored(plan) if asked == precision else fold(base.weights, plan.coefficients, mode)
        directory = tmp_path_factory.mktemp("graphs")
        vision_precision = "float32" if precision == "float32" else chosen.vision_precision
        made = emission_of(plan, folded, precision=precision, vision_precision=vision_precision)
        graphs = backend.emit(made, directory)
        backend.emit_side_files(made, directory)
        return plan, folded, {role: directory / name for role, name in graphs.items()}

    return build


def weights_of(plan: Plan) -> PlannedWeights:
    """The plan's weights; statistics are collected where it wants them."""
    return PlannedWeights.of(plan, plan_statistics(plan, WorkLog(quiet=True)))


def stored(plan: Plan) -> FoldedDecoder:
    """The plan's decoder at its precision."""
    return weights_of(plan).stored


def emission_of(plan: Plan, decoder: FoldedDecoder, **changes: Any) -> Emission:
    """What the plan's package is made of, but for ``changes``."""
    return replace(Emission.of(plan, decoder), **changes)


def opened(backend: GraphBackend, graphs: Mapping[str, Path], plan: Plan, **options: Any) -> Engine:
    """Graphs of a plan in that backend's runtime."""
    providers = plan.target.execution_providers or ()
    return backend.open_engine(graphs, context_length=plan.context_length, providers=providers, **options)


def decoder_session(graphs: Mapping[str, Path], context_length: int) -> DecoderSession:
    """The decoder of emitted ONNX graphs on its own."""
    config = read_runtime_config(graphs["runtime"])
    session = open_session(graphs["decoder"], providers=["CPUExecutionProvider"])
    return DecoderSession(session, context_length, scope=config.scope, defaults=config.defaults())


def generator(engine: Any, base: BaseModel, mode: FoldMode) -> Generator:
    return Generator(
        engine=engine,
        family=base.family,
        fold=mode,
        image_token_id=base.image_token_id,
        runtime_config=base.family.runtime_config(base.config),
    )


def reference(plan: Plan, folded: FoldedDecoder) -> Generator:
    attn, mlp = folded.dense()
    engine = ReferenceEngine(
        folded.weights,
        scaled=folded.scaled,
        vision=plan.base.vision,
        image_token_id=plan.base.image_token_id,
        gate=(plan.coefficients.scope, Scalars(attn=attn, mlp=mlp)) if folded.gate else None,
    )
    return generator(engine, plan.base, plan.fold)


def prompt(base: BaseModel, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    return encode_messages(base.processor, [user_message([picture(size=size)], "where is the circle ?")])
