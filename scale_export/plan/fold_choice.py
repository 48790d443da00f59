"""Choosing how scalars enter an export: the cheapest fold mode that is exact (``docs/scale.md``)."""

from __future__ import annotations

import numpy as np

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.records import DecoderSpec
from scale_export.core.words import FOLD_MODES, FoldMode
from scale_export.model.base import BaseModel

from .options import Auto
from .targets import Target


def choose_fold(
    coefficients: Coefficients, base: BaseModel, target: Target, asked: FoldMode | Auto, scales: str | None
) -> tuple[FoldMode, str]:
    """The cheapest exact mode, or the asked one if it is exact (``docs/scale.md``); with the sentence that says why.

    ``scales``: see ``unfoldable``.
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
    if asked in refusals:
        ways = " or ".join(f"--fold {m}" for m in exact) or "a target that gates, such as cpu"
        raise UserError(f"--fold {asked} is refused: {refusals[asked]}; use {ways}{_working_block(scales)}")
    return asked, f"Fold mode {asked}, as asked: it is exact here ({reason})."


def _working_block(scales: str | None) -> str:
    return ", or a --block-size that divides head_dim" if scales and "straddle" in scales else ""


def _explain(mode: FoldMode, reason: str, refusals: dict[FoldMode, str]) -> tuple[FoldMode, str]:
    if mode == "weights":
        return mode, f"Scalars are folded into weights at no cost: {reason}."
    why_not = refusals.get("weights", reason)
    if mode == "gate":
        return mode, f"Scalars stay as a gate inside the graph: {why_not}."
    return mode, f"Two sets of weights, one for the prefix and one for the last token on: {why_not}."


def scaled_layers(coefficients: Coefficients) -> tuple[int, ...]:
    """The layers where some scalar differs from 1."""
    rows = zip(coefficients.layer_indices, coefficients.head_scale, coefficients.mlp_scale, strict=True)
    return tuple(layer for layer, heads, mlp in rows if np.any(heads != 1) or mlp != 1)


def unfoldable(coefficients: Coefficients, spec: DecoderSpec, block_size: int) -> str | None:
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
