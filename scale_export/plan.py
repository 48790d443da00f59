"""Planning an export: every decision and every refusal, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .base import BaseModel
from .bits_plan import bits_reason, other_bits
from .blocks import Bits
from .coefficients import check_base
from .errors import UserError, did_you_mean
from .prompts import encode_messages, user_message
from .quantize import CalibrationOptions
from .quantizer_choice import calibration_options, choose_quantizer
from .records import (
    BLOCKWISE,
    FOLD_MODES,
    INTEGER,
    Array,
    Coefficients,
    DecoderSpec,
    FoldMode,
    Precision,
    TowerInput,
)
from .targets import FloatType, Target

PREFILL_STEP = 64
"""What a prefill longer than the target's is rounded up to, and the room that is added for words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a user may ask beyond the coefficients and the target; None and ``auto`` take the target's choice.

    Attributes:
        calib: question set of calibration; ``auto`` is the one that the coefficients were trained on, ``none`` none.
        calib_limit, calib_weighting, calib_pictures: see ``CalibrationOptions``.
        bits: bits of single matrices, in place of the precision's, or the name of a mix; see ``bits_plan``.
        cache: where statistics are kept; None is the user's own cache folder.
    """

    precision: str | None = None
    fold: str = "auto"
    block_size: int | None = None
    quantizer: str = "auto"
    calib: str = "auto"
    calib_limit: int = 128
    calib_weighting: str = "uniform"
    calib_pictures: bool = True
    bits: Mapping[str, int] | str = field(default_factory=dict)
    cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decided export.

    ``decisions`` says, sentence by sentence, what was chosen and why; the report and ``--dry-run`` show it.
    ``tower_inputs`` are those of one tile as the model's own processor makes it, or of the largest picture;
    ``prefill_tokens`` is how many tokens Core ML's function ``prefill`` takes at once. ``block_size`` is 0 on a target
    that quantizes nothing, and of w8a8, which has a scale for each output channel. ``quantizer`` is None for float
    weights; ``calibration`` is what it is calibrated on, if it is, and ``questions`` what it would be, which a search
    under a budget measures on; ``other_bits`` names the matrices whose bits are not the precision's.
    """

    base: BaseModel
    coefficients: Coefficients
    target: Target
    precision: Precision
    vision_precision: Precision
    block_size: int
    context_length: int
    tower_inputs: Mapping[str, TowerInput]
    prefill_tokens: int | None
    fold: FoldMode
    decisions: tuple[str, ...]
    quantizer: str | None = None
    calibration: CalibrationOptions | None = None
    calibration_cache: Path | None = None
    questions: CalibrationOptions | None = None
    other_bits: Mapping[str, Bits] = field(default_factory=dict)

    @property
    def bits(self) -> Bits:
        """Of every quantized matrix but ``other_bits``."""
        return 4 if self.precision == "int4" else 8

    @property
    def quantized(self) -> bool:
        """Whether weights are integers."""
        return self.precision in INTEGER

    @property
    def static(self) -> bool:
        """Whether the inputs of products are integers too, by scales that calibration fixed."""
        return self.precision == "w8a8"

    @property
    def float_types(self) -> tuple[FloatType, FloatType]:
        """What the decoder computes in, and keeps in its cache; float weights decide for themselves."""
        match self.precision:
            case "float32" | "float16" as own:
                return own, own
            case _:
                assert self.target.activations and self.target.kv_cache, "targets with graphs state them"
                return self.target.activations, self.target.kv_cache


def make_plan(coefficients: Coefficients, base: BaseModel, target: Target, options: ExportOptions) -> Plan:
    """Decide precision, block size, context and fold mode.

    Raises:
        UserError: a base model that the coefficients don't fit, or a choice that the target can't run or
            that would not be exact.
    """
    check_base(coefficients, base.checkpoint)
    if coefficients.mlp_site != base.spec.mlp_site:
        raise UserError(
            f"the coefficients scale the MLP at {coefficients.mlp_site!r}, but {base.family.model_type} has its "
            f"site at {base.spec.mlp_site!r}: train them again on this model"
        )
    precision = _precision(target, options.precision)
    block_size = _block_size(target, options.block_size, precision)
    quantized = precision in INTEGER
    if precision in BLOCKWISE:
        _check_widths(base.spec, target, block_size)
    scales = _unfoldable(coefficients, base.spec, block_size) if quantized else None
    fold, why = _fold_mode(coefficients, base, target, options.fold, scales)
    context_length = min(target.context_length or base.spec.max_positions, base.spec.max_positions)
    base, resized = _fit_pictures(base, target, context_length)
    trial = encode_messages(base.processor, [user_message([Image.new("RGB", (256, 256))], "?")])
    tower_inputs = _tower_inputs(base, target, context_length, trial)
    if base.family.generic:
        _check_one_size(base, tower_inputs)
    prefill_tokens, why_so_many = _prefill_tokens(base, target, trial)
    quantizer, calibration, how = choose_quantizer(coefficients, base, precision, options)
    bits = other_bits(options.bits, base.spec, target, precision)
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
            *how,
            *bits_reason(bits, base.spec, target, _bits_source(options.bits)),
            _context_reason(context_length, target, base.spec.max_positions),
            *resized,
            *why_so_many,
            *_route(base),
            *_placement(base.spec, target),
        ),
        quantizer=quantizer,
        calibration=calibration,
        calibration_cache=options.cache,
        questions=calibration_options(coefficients, options) if quantized else None,
        other_bits=bits,
    )


def _bits_source(asked: Mapping[str, int] | str) -> str:
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
    block_size = asked or target.block_size
    if block_size < 16 or block_size & (block_size - 1):
        raise UserError(f"block size {block_size} is refused: it must be a power of two from 16")
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
    known = ", ".join(target.precisions)
    near = did_you_mean(asked or "", target.precisions)
    raise UserError(f"target {target.name} has no precision {asked!r}{near}; it has {known}")


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
    found = other_bits(bits, spec, target, plan.precision)
    earlier = bits_reason(plan.other_bits, spec, target)
    kept = tuple(decision for decision in plan.decisions if decision not in earlier)
    return replace(plan, other_bits=found, decisions=(*kept, *bits_reason(found, spec, target, why)))


def scaled_layers(coefficients: Coefficients) -> tuple[int, ...]:
    """The layers where some scalar differs from 1."""
    rows = zip(coefficients.layer_indices, coefficients.head_scale, coefficients.mlp_scale, strict=True)
    return tuple(layer for layer, heads, mlp in rows if np.any(heads != 1) or mlp != 1)


def _unfoldable(coefficients: Coefficients, spec: DecoderSpec, block_size: int) -> str | None:
    """Why integer codes would not survive folding into weights; None where scales can take the scalars.

    A scale for a whole row is one block, of all heads. Where it is DequantizeLinear's, it must stay positive.
    """
    if block_size:
        if not _straddles(coefficients, spec.head_dim, block_size):
            return None
        return f"a quantization block of {block_size} columns would straddle heads with different scalars"
    if _straddles(coefficients, spec.head_dim, spec.num_heads * spec.head_dim):
        return (
            "w8a8 weights have one scale for each output channel, which can't take heads with different scalars "
            "without other integer codes"
        )
    if any(np.any(heads <= 0) for heads in coefficients.head_scale) or np.any(coefficients.mlp_scale <= 0):
        return "a scalar that is not positive would make w8a8's weight scales so, which runtimes refuse"
    return None


def _straddles(coefficients: Coefficients, head_dim: int, block_size: int) -> bool:
    """Whether some block of o_proj's columns would hold two heads with different scalars."""
    for heads in coefficients.head_scale:
        columns = np.repeat(heads, head_dim)
        padded = np.pad(columns, (0, -len(columns) % block_size), mode="edge").reshape(-1, block_size)
        if np.any(padded != padded[:, :1]):
            return True
    return False


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
                f"{name} {width} is not a multiple of block size {block_size}: name a smaller --block-size"
            )


PICTURES_IN_CONTEXT = 4
"""How many of the largest pictures fill a context, where pictures have as many tokens as their size asks for."""


def _fit_pictures(base: BaseModel, target: Target, context_length: int) -> tuple[BaseModel, tuple[str, ...]]:
    """The base with pictures that the target can hold, where they come in patches; and the sentence that says so."""
    if not base.family.patched or target.context_length is None:
        return base, ()
    side, own = target.max_tile_side, dict(base.processor.image_processor.size)
    tokens = context_length // PICTURES_IN_CONTEXT
    size = dict(base.family.fitting_size(base.processor, side=side, tokens=tokens))
    if size == own:
        return base, ()
    room = f"{tokens} tokens, a quarter of the context"
    if side is not None:
        room = f"{room}, and in {side} × {side} pixels"
    return replace(base, picture_size=size), (
        f"Pictures are resized to fit in {room}: the image processor's size is {size} in place of {own}, and it keeps "
        f"a picture's shape as ever.",
    )


def _tower_inputs(
    base: BaseModel, target: Target, context_length: int, trial: Mapping[str, Array]
) -> dict[str, TowerInput]:
    """What the vision tower takes of a prompt's tile, or of the largest picture; refuses what can't be held."""
    family, runtime = base.family, base.family.runtime_config(base.config)
    limit, tokens = target.max_tile_side, trial["input_ids"].shape[1]
    found = {
        name: TowerInput(shape=value.shape[1:], integer=value.dtype.kind != "f")
        for name, value in family.tower_inputs(trial, runtime).items()
    }
    if family.patched:
        places = family.most_places(base.processor, runtime)
        found = {name: replace(i, shape=(places, *i.shape[1:])) for name, i in found.items()}
    elif limit is not None and max(found["pixel_values"].shape[1:]) > limit:
        height, width = found["pixel_values"].shape[1:]
        raise UserError(
            f"the model looks at tiles of {height} × {width} pixels, and target {target.name} allows {limit} a "
            f"side: choose another target"
        )
    if tokens >= context_length:
        raise UserError(
            f"one picture and a word take {tokens} tokens, and the context on target {target.name} holds "
            f"{context_length}: choose another target"
        )
    return found


def _route(base: BaseModel) -> tuple[str, ...]:
    """What is to be known of a model without a file of its own; a sentence."""
    if not base.family.generic:
        return ()
    return (
        f"Model type {base.family.model_type} has no file of its own and goes the generic route: its modules, weights "
        f"and inputs were checked by name, and what proves it is this export's fold leg.",
    )


def _check_one_size(base: BaseModel, tower_inputs: Mapping[str, TowerInput]) -> None:
    """Refuse a model without a file of its own whose pictures keep their proportions."""
    wide = encode_messages(base.processor, [user_message([Image.new("RGB", (256, 128))], "?")])
    shape, pixel_shape = base.family.tiles(wide).shape[1:], tower_inputs["pixel_values"].shape
    if shape != pixel_shape:
        raise UserError(
            f"the processor of {base.family.model_type} makes a wide picture {shape[1]} × {shape[2]} pixels and a "
            f"square one {pixel_shape[1]} × {pixel_shape[2]}, and the generic route takes one size: choose a "
            f"supported family, or add one"
        )


def _prefill_tokens(
    base: BaseModel, target: Target, trial: Mapping[str, Array]
) -> tuple[int | None, tuple[str, ...]]:
    """The target's T, or what holds the tokens of a prepared prompt that see one another; with a sentence on it."""
    asked = target.prefill_tokens
    groups = base.family.attention_groups(trial, base.family.runtime_config(base.config))
    if asked is None or groups is None:
        return asked, ()
    largest = int(np.bincount(groups[groups >= 0]).max(initial=0))
    if largest <= asked:
        return asked, ()
    held = -(-largest // PREFILL_STEP) * PREFILL_STEP + PREFILL_STEP
    return held, (
        f"The function prefill takes {held} tokens at once, not the target's {asked}: {largest} tokens of a prompt "
        f"with one picture see one another, and more than {held} that do are refused.",
    )


def _fold_mode(
    coefficients: Coefficients, base: BaseModel, target: Target, asked: str, scales: str | None
) -> tuple[FoldMode, str]:
    """The cheapest exact mode, or the asked one if it is exact (contract C3); with the sentence that says why.

    ``scales``: see ``_unfoldable``.
    """
    layers = scaled_layers(coefficients)
    last_layer_only = set(layers) <= {base.spec.num_layers - 1}
    refusals: dict[FoldMode, str] = {}
    if coefficients.scope == "all":
        reason = "the scalars act on every token, as weights do"
        refusals["two-phase"] = "two phases leave the prompt unscaled, but these scalars act on every token"
    elif last_layer_only:
        reason = "only the final decoder layer is scaled, and nothing later reads its other positions"
    else:
        reason = "the scalars act on the last token only, weights would act on every token"
        refusals["weights"] = (
            f"folding into weights would scale every token, but these scalars act on the last token only, "
            f"in layers before the final one ({', '.join(map(str, layers[:4]))}{', …' if len(layers) > 4 else ''})"
        )
    if base.family.prompt_sees_itself:
        refusals.setdefault(
            "two-phase",
            f"every token of a {base.family.model_type} prompt sees its last one, which can't come in a later phase",
        )
    if scales is not None:
        refusals.setdefault("weights", scales)
        refusals.setdefault("two-phase", scales)
    for mode in FOLD_MODES:
        if mode not in target.fold_modes:
            refusals.setdefault(mode, f"target {target.name} does not run it")
    exact = [mode for mode in FOLD_MODES if mode not in refusals]
    if asked == "auto":
        if not exact:
            reasons = "; ".join(dict.fromkeys(refusals.values()))
            raise UserError(f"no fold mode is exact here: {reasons}; choose a target that gates, such as cpu")
        return _explain(exact[0], reason, refusals)
    if asked not in FOLD_MODES:
        raise UserError(
            f"unknown fold mode {asked!r}{did_you_mean(asked, FOLD_MODES)}; known: auto, {', '.join(FOLD_MODES)}"
        )
    mode = FOLD_MODES[FOLD_MODES.index(asked)]
    if mode in refusals:
        ways = " or ".join(f"--fold {m}" for m in exact) or "a target that gates, such as cpu"
        raise UserError(f"--fold {mode} is refused: {refusals[mode]}; use {ways}{_working_block(scales)}")
    return mode, f"Fold mode {mode}, as asked: it is exact here ({reason})."


def _working_block(scales: str | None) -> str:
    return ", or a --block-size that divides head_dim" if scales and "straddle" in scales else ""


def _explain(mode: FoldMode, reason: str, refusals: dict[FoldMode, str]) -> tuple[FoldMode, str]:
    if mode == "weights":
        return mode, f"Scalars are folded into weights at no cost: {reason}."
    why_not = refusals.get("weights", reason)
    if mode == "gate":
        return mode, f"Scalars stay as a gate inside the graph: {why_not}."
    return mode, f"Two sets of weights, one for the prefix and one for the last token on: {why_not}."
