"""Planning an export: every decision and every refusal, before a weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.records import DecoderSpec
from scale_export.core.words import BLOCK_SIZES, BLOCKWISE, INTEGER, Precision
from scale_export.device.rules import check_vocabulary
from scale_export.model.base import BaseModel
from scale_export.model.identity import check_base

from .activation_choice import activations_reason, choose_activations
from .bits import DEFAULT_MIX, bits_plan, bits_reason, is_default, other_bits
from .fold_choice import choose_fold, unfoldable
from .options import ExportOptions
from .picture_choice import check_one_size, choose_prefill_tokens, fit_pictures, tower_inputs_of
from .prompt_check import check_rows, check_words, trial_prompt
from .quantizer_choice import calibration_questions, choose_quantizer
from .record import Plan
from .targets import Target


def make_plan(coefficients: Coefficients, base: BaseModel, target: Target, options: ExportOptions) -> Plan:
    """Decide precision, activations, block size, context and fold mode.

    Raises:
        UserError: a base model that the coefficients don't fit, one whose generation config holds a rule that packages
            don't follow, or a choice that the target can't run or that would not be exact.
    """
    check_base(coefficients, base.checkpoint)
    if coefficients.mlp_site != base.spec.mlp_site:
        raise UserError(
            f"the coefficients scale the MLP at {coefficients.mlp_site!r}, but {base.family.model_type} has its "
            f"site at {base.spec.mlp_site!r}: train them again on this model"
        )
    check_vocabulary(base.rules, base.spec.vocab_size)
    precision = _precision(target, options.precision)
    target = choose_activations(target, precision, options.activations)
    block_size = _block_size(target, options.block_size, precision)
    quantized = precision in INTEGER
    if precision in BLOCKWISE:
        _check_widths(base.spec, target, block_size)
    scales = unfoldable(coefficients, base.spec, block_size) if quantized else None
    fold, why = choose_fold(coefficients, base, target, options.fold, scales)
    context_length = min(target.context_length or base.spec.max_positions, base.spec.max_positions)
    base, resized = fit_pictures(base, target, context_length)
    trial = trial_prompt(base)
    tower_inputs = tower_inputs_of(base, target, context_length, trial)
    if base.family.generic:
        check_one_size(base, tower_inputs)
    check_words(base)
    check_rows(base, trial)
    prefill_tokens, why_so_many = choose_prefill_tokens(base, target, trial)
    quantizer, calibration, how = choose_quantizer(coefficients, base, precision, options)
    asked_bits = bits_plan(options.bits)
    bits = other_bits(asked_bits, base.spec, target, precision, tied=base.stored_weights.tied)
    return Plan(
        base=base,
        coefficients=coefficients,
        target=target,
        precision=precision,
        vision_precision=(quantized and target.vision_precision) or precision,
        block_size=block_size,
        context_length=context_length,
        tower_inputs=tower_inputs,
        prefill_tokens=prefill_tokens,
        fold=fold,
        decisions=(
            why,
            _precision_reason(precision, options.precision, target, block_size),
            *activations_reason(target, precision, options.activations),
            *how,
            *bits_reason(bits, base.spec, target, _bits_source(asked_bits, target, precision)),
            _context_reason(context_length, target, base.spec.max_positions),
            *resized,
            *why_so_many,
            *_rules(base),
            *_route(base),
            *_placement(base.spec, target),
        ),
        quantizer=quantizer,
        calibration=calibration,
        calibration_cache=None if options.cache is None else Path(options.cache),
        questions=calibration_questions(coefficients, options) if quantized else None,
        other_bits=bits,
    )


DEFAULT_BITS = f"int4's default (--bits-plan {DEFAULT_MIX})"


def _bits_source(asked: Mapping[str, int] | str | None, target: Target, precision: Precision) -> str:
    if is_default(asked, target, precision):
        return DEFAULT_BITS
    return f"--bits-plan {asked}" if isinstance(asked, str) else "the bits plan"


def _block_size(target: Target, asked: int | None, precision: Precision) -> int:
    if precision == "w8a8":
        if asked is not None:
            raise UserError("w8a8 weights have one scale for each output channel: leave --block-size out")
        return 0
    if target.block_size is None:
        if asked is not None:
            raise UserError(f"target {target.name} quantizes nothing: leave --block-size out")
        return 0
    block_size = target.block_size if asked is None else asked
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UserError(
            f"block size {block_size} is refused, since no runtime here has kernels for it: give one of {sizes}"
        )
    return block_size


def _context_reason(context_length: int, target: Target, positions: int) -> str:
    if target.context_length is None:
        return f"The context holds the model's own {positions} tokens."
    return (
        f"The context holds {context_length} tokens: the smaller of the target's {target.context_length} "
        f"and the model's {positions}."
    )


def _precision(target: Target, asked: str | None) -> Precision:
    for precision in target.precisions:
        if precision == (asked or target.default_precision):
            return precision
    raise UserError(
        f"target {target.name} has no precision {asked!r}: use --precision {' or '.join(target.precisions)}"
    )


def _precision_reason(precision: Precision, asked: str | None, target: Target, block_size: int) -> str:
    who = "as asked" if asked else f"target {target.name}'s default"
    if precision == "stored":
        return "Every tensor keeps the dtype that the base model stores it in."
    if precision == "w8a8":
        return (
            f"Weights are int8 with a scale for each output channel, and the inputs of their products int8 in ranges "
            f"that calibration found, {who}."
        )
    if precision in BLOCKWISE:
        return f"Weights are {precision} in symmetric blocks of {block_size}, {who}."
    return f"Weights are {precision}, {who}."


def with_bits(plan: Plan, bits: Mapping[str, int], why: str) -> Plan:
    """The plan with bits of its own for single matrices, and the sentence that says so."""
    spec, target = plan.base.spec, plan.target
    found = other_bits(bits, spec, target, plan.precision, tied=plan.base.stored_weights.tied)
    earlier = {
        said
        for source in ("the bits plan", DEFAULT_BITS)
        for said in bits_reason(plan.other_bits, spec, target, source)
    }
    kept = tuple(decision for decision in plan.decisions if decision not in earlier)
    return replace(plan, other_bits=found, decisions=(*kept, *bits_reason(found, spec, target, why)))


def _placement(spec: DecoderSpec, target: Target) -> tuple[str, ...]:
    """What is known to keep a decoder off the Neural Engine, where the target allows that; a sentence each."""
    if target.compute_units not in ("all", "cpu_and_ne") or spec.head_dim % 32 == 0:
        return ()
    return (
        f"The cache's rows hold head_dim {spec.head_dim} values, no multiple of 32, which the Neural Engine is said "
        f"to refuse in states: expect the CPU.",
    )


def _check_widths(spec: DecoderSpec, target: Target, block_size: int) -> None:
    """Refuse a block size that leaves a partial block where the runtime takes whole ones only."""
    widths = {"hidden size": spec.hidden_size}
    if target.backend != "onnxruntime":  # whose kernels pad a matrix's last block
        widths |= {"attention width": spec.num_heads * spec.head_dim, "MLP width": spec.intermediate_size}
    for name, width in widths.items():
        if width % block_size:
            raise UserError(
                f"{name} {width} is not a multiple of block size {block_size}: {_fitting(widths.values(), target)}"
            )


def _rules(base: BaseModel) -> tuple[str, ...]:
    """What acts on answers beside the model's own logits; a sentence."""
    acting = base.rules.acting
    return (f"Answers follow the model's generation config: {', '.join(acting)}.",) if acting else ()


def _fitting(widths: Iterable[int], target: Target) -> str:
    """What to do where some of a matrix's ``widths`` is no multiple of the block size."""
    common = math.gcd(*widths)
    if fitting := [size for size in BLOCK_SIZES if common % size == 0]:
        return f"give --block-size {max(fitting)}"
    others = [precision for precision in target.precisions if precision not in BLOCKWISE]
    ways = [f"use --precision {' or '.join(others)}"] if others else []
    if target.backend != "onnxruntime":
        ways.append("choose target cpu, whose kernels pad such a matrix, unless it is the hidden size")
    return f"no block size fits; {', or '.join(ways)}"


def _route(base: BaseModel) -> tuple[str, ...]:
    """What is to be known of a model without a file of its own; a sentence."""
    if not base.family.generic:
        return ()
    return (
        f"Model type {base.family.model_type} has no file of its own and goes the generic route: its modules, weights "
        f"and inputs were checked by name, and what proves it is this export's fold leg.",
    )
