"""Gathering what the report page shows."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from scale_export.backends.interface import GraphBackend, load_backend
from scale_export.charts.accuracy import FrontierPoint
from scale_export.core.version import __version__
from scale_export.core.words import Precision
from scale_export.plan.record import Plan
from scale_export.proof.answers import Answered
from scale_export.proof.files import library_versions
from scale_export.proof.measure import Measured
from scale_export.search.budget import BitsChoice, Point

from .page import DifferingQuestion, ReportData

GALLERY = 12
BYTES_PER_VALUE: dict[Precision, float] = {"float32": 4, "float16": 2, "int8": 1, "int4": 0.5, "w8a8": 1}


def report_data(
    plan: Plan, measured: Measured, directory: Path, name: str, choice: BitsChoice | None = None
) -> ReportData:
    """Everything on the report page, from the plan, the measurement and the files written so far.

    ``choice`` is what a search under a budget came to.
    """
    base, coefficients = plan.base, plan.coefficients
    attn, mlp = coefficients.dense(base.spec.num_layers, base.spec.num_heads)
    differing = [a for a in measured.answered if not a.agrees]
    facts = {
        "Base model": base.name,
        "Family": base.family.model_type,
        "Target": f"{plan.target.name}: {plan.target.title}",
        "Backend": plan.target.backend,
        "Measured on": measured.report.executed_by,
        "Reference": measured.report.reference,
        "Precision": plan.precision,
        **({} if plan.quantizer is None else {"Quantizer": _quantizer(plan)}),
        "Scope": "last token of each step" if coefficients.scope == "last" else "every token",
        "Scalars": f"{coefficients.count} in {len(coefficients.layer_indices)} layers",
        "Fold mode": plan.fold,
        "Image processor": type(base.processor.image_processor).__name__,
    }
    return ReportData(
        name=name,
        facts=facts,
        decisions=plan.decisions,
        parity=measured.report,
        attn_scale=attn,
        mlp_scale=mlp,
        scope=coefficients.scope,
        sizes=tuple(
            (file.relative_to(directory).as_posix(), file.stat().st_size)
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        ),
        costs=decode_costs(plan),
        differing=tuple(_differing(a) for a in differing[:GALLERY]),
        versions={"scale-export": __version__, **library_versions(plan)},
        frontier=() if choice is None else tuple(_point(point, choice) for point in choice.frontier),
        frontier_reference=None if choice is None else choice.reference_accuracy,
        frontier_words=() if choice is None else (*beside_uniform(choice), *_timed(choice)),
    )


def _point(point: Point, choice: BitsChoice) -> FrontierPoint:
    return FrontierPoint(
        size=point.size,
        kl=point.kl,
        accuracy=point.accuracy,
        chosen=point == choice.chosen,
        uniform=_uniform(point, choice),
    )


def _uniform(point: Point, choice: BitsChoice) -> str | None:
    """``8 bits everywhere`` or ``4 bits everywhere``, as far as the search reached; None between."""
    rest = "" if "embedding" in choice.sensitivity else " but in the embedding"
    return {0: "8 bits everywhere", len(choice.sensitivity): f"4 bits everywhere{rest}"}.get(point.narrow)


def beside_uniform(choice: BitsChoice) -> tuple[str, ...]:
    """The choice against the uniform points next to its size, on the questions of the search; a sentence each."""
    chosen = choice.chosen
    if same := _uniform(chosen, choice):
        return (f"The choice is uniform: {same}.",)
    return tuple(
        f"{_uniform(point, choice)}, the next {side} uniform size, takes "
        f"{abs(point.size - chosen.size) / chosen.size:.0%} "
        f"{'more' if point.size > chosen.size else 'less'}, with KL {point.kl:.2g} for {chosen.kl:.2g} and "
        f"{point.accuracy:.1%} right for {chosen.accuracy:.1%}."
        for side, point in (("larger", choice.frontier[0]), ("smaller", choice.frontier[-1]))
    )


def _timed(choice: BitsChoice) -> tuple[str, ...]:
    return () if choice.speed is None else tuple(f"Speed here: {line}." for line in choice.speed.lines())


def _quantizer(plan: Plan) -> str:
    on = "" if plan.calibration is None else f", calibrated on {plan.calibration}"
    scales = f"blocks of {plan.block_size}" if plan.block_size else "a scale for each output channel"
    return f"{plan.quantizer}, {scales}{on}"


def decode_costs(plan: Plan) -> tuple[tuple[str, str], ...]:
    """What one decoded token costs, from shapes alone: the same on every machine."""
    spec = plan.base.spec
    weights = sum(out * width for out, width, _ in spec.linears().values())
    scalars = ("ScAle scalars", f"{plan.coefficients.count:,}")
    if not isinstance(
        load_backend(plan.target.backend), GraphBackend
    ):  # whoever takes the checkpoint decides the rest
        return (("Weights that one token multiplies", f"{weights:,}"), scalars)
    scale_bytes, cache_bytes = (2 if kind == "float16" else 4 for kind in plan.float_types)
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * cache_bytes
    read = weights * BYTES_PER_VALUE[plan.precision]
    for name, bits in plan.other_bits.items():
        if name != "embedding":
            out, width, _ = spec.linears()[name]
            read += out * width * (bits - plan.bits) / 8
    if plan.block_size and plan.quantized:
        read += weights / plan.block_size * scale_bytes
    elif plan.quantized:
        read += sum(out for out, _, _ in spec.linears().values()) * scale_bytes
    gate = spec.num_layers * (spec.num_heads * spec.head_dim + spec.hidden_size) if plan.fold == "gate" else 0
    return (
        ("Weights that one token multiplies", f"{weights:,}"),
        ("Weight bytes read per token", f"{read / 1e6:,.2f} MB"),
        ("KV cache per token of context", f"{per_token:,} bytes"),
        ("KV cache at full context", f"{per_token * plan.context_length / 1e6:,.1f} MB"),
        scalars,
        ("Extra multiplications per token by the gate", f"{gate:,} ({gate / weights:.3%} of the weights)"),
    )


def _differing(answered: Answered) -> DifferingQuestion:
    return DifferingQuestion(
        prompt=answered.question.prompt,
        image_png=_png(answered.question.image),
        truth=answered.question.answer,
        base=answered.of_base,
        scale=answered.scale,
        export=answered.export,
        near_tie=answered.near_tie,
    )


def _png(image: Image.Image | None) -> bytes | None:
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
