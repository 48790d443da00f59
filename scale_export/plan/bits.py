"""Bits per matrix: what a plan may ask, the named mixes, and what a target decides by itself.

A plan is a TOML file (``read_bits_plan``), a mapping, or the name of one of ``MIXES``. Where none is asked, int4 is
``spared`` on backends that can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.options import StrPath
from scale_export.core.records import DecoderSpec
from scale_export.core.words import BLOCKWISE, Precision
from scale_export.model.blocks import Bits
from scale_export.quantize import check_bits, read_bits_plan

from .targets import Target

MIXED_BACKENDS = ("onnxruntime", "coreml")
"""Backends whose decoders can hold int4 and int8 matrices side by side."""
FIXED: Mapping[str, Mapping[str, Bits]] = {"coreml": {"embedding": 8}}
"""Matrices whose bits a backend decides by itself, where weights are quantized."""


def k_quant_mixed(spec: DecoderSpec) -> dict[str, int]:
    """8 bits for the output head, and for ``v_proj`` and ``down_proj`` in the layers that round worst; 4 for the rest.

    Those are the first and the last eighth of the layers and every third one between, as in llama.cpp's Q4_K_M and in
    onnxruntime-genai's ``k_quant_mixed``, whose rounding of an eighth this is. Theirs are blocks of another kind, with
    minima; here they are this project's symmetric ones.
    """
    layers = spec.num_layers
    wide = {
        layer
        for layer in range(layers)
        if 8 * layer < layers or 8 * layer >= 7 * layers or (layer - round(layers / 8)) % 3 == 2
    }
    names = {"lm_head", *(f"layers.{layer}.{part}" for layer in wide for part in ("v_proj", "down_proj"))}
    return {name: 8 if name in names else 4 for name in spec.linears()}


def spared(spec: DecoderSpec) -> dict[str, int]:
    """8 bits for what 4 hurt most for their bytes on a really pretrained model; 4 for the rest.

    Those are the output head, every ``v_proj``, and ``down_proj`` in the first eighth of the layers and in the last one
    (measured in docs/quantization.md).
    """
    layers = spec.num_layers
    early = {layer for layer in range(layers) if 8 * layer < layers or layer == layers - 1}
    names = {
        "lm_head",
        *(f"layers.{layer}.v_proj" for layer in range(layers)),
        *(f"layers.{layer}.down_proj" for layer in early),
    }
    return {name: 8 if name in names else 4 for name in spec.linears()}


def uniform(spec: DecoderSpec) -> dict[str, int]:
    """4 bits everywhere."""
    return dict.fromkeys((*spec.linears(), "embedding"), 4)


MIXES: Mapping[str, Callable[[DecoderSpec], dict[str, int]]] = {
    "spared": spared,
    "k_quant_mixed": k_quant_mixed,
    "uniform": uniform,
}
DEFAULT_MIX: Final = "spared"
"""That of int4, where a backend can hold it and nothing else is asked."""


def bits_plan(asked: Mapping[str, int] | StrPath | None) -> Mapping[str, int] | str | None:
    """What was asked: the name of one of ``MIXES``, or bits by matrix, which a TOML file may hold; None for nothing.

    Raises:
        UserError: neither a mix nor a file.
    """
    if not isinstance(asked, str | Path):
        return asked or None
    path = Path(asked)
    if str(path) in MIXES:
        return str(path)
    if not path.exists() and path.name == str(asked) and not path.suffix:
        raise UserError(
            f"there is no bits plan {path.name!r}{did_you_mean(path.name, MIXES)}: name a TOML file, or one of "
            f"{', '.join(MIXES)}"
        )
    return read_bits_plan(path)


def fixed_bits(target: Target) -> Mapping[str, Bits]:
    """What the target's backend decides by itself."""
    return FIXED.get(target.backend, {})


def is_default(asked: Mapping[str, int] | str | None, target: Target, precision: Precision) -> bool:
    """Whether ``DEFAULT_MIX`` decides, where ``asked`` is what ``bits_plan`` gives."""
    return asked is None and precision == "int4" and target.backend in MIXED_BACKENDS


def other_bits(
    asked: Mapping[str, int] | str | None,
    spec: DecoderSpec,
    target: Target,
    precision: Precision,
    *,
    tied: bool,
) -> dict[str, Bits]:
    """The matrices whose bits are not the precision's; ``asked`` is what ``bits_plan`` gives.

    An embedding table that is the output head (``tied``) has the head's bits, where nobody says otherwise.

    Raises:
        UserError: an unknown matrix, other bits than 4 and 8, or what the target can't store.
    """
    if asked:
        check_mixed(target, precision)
    elif precision not in BLOCKWISE:
        return {}
    elif is_default(asked, target, precision):
        asked = DEFAULT_MIX
    if isinstance(asked, str):
        asked = {name: bits for name, bits in MIXES[asked](spec).items() if name not in fixed_bits(target)}
    asked = dict(asked or {})
    if tied and "lm_head" in asked and "embedding" not in fixed_bits(target):
        asked.setdefault("embedding", asked["lm_head"])
    fixed = fixed_bits(target)
    for name, bits in fixed.items():
        if asked.get(name, bits) != bits:
            raise UserError(
                f"the bits plan gives the {name} {asked[name]} bits, but target {target.name} always "
                f"keeps it in {bits}: "
                f"leave that line out"
            )
    return check_bits({**asked, **fixed}, spec, 4 if precision == "int4" else 8)


def check_mixed(target: Target, precision: Precision) -> None:
    """Refuse bits per matrix where a package has no integer weights, or one width only."""
    if precision not in BLOCKWISE:
        raise UserError(
            f"bits per matrix need int8 or int4 weights, and these are {precision}: give another --precision"
        )
    if target.backend not in MIXED_BACKENDS:
        raise UserError(
            f"target {target.name} stores all matrices with the same bits: leave out the bits plan, or choose a target "
            f"of ONNX Runtime or Core ML"
        )


def bits_reason(
    found: Mapping[str, Bits], spec: DecoderSpec, target: Target, why: str = "the bits plan"
) -> tuple[str, ...]:
    """The sentences that say what ``other_bits`` found."""
    fixed = fixed_bits(target)
    said = [
        f"The {name} has {bits} bits, which target {target.name} keeps it in whatever the matrices have."
        for name, bits in fixed.items()
        if name in found
    ]
    chosen = [name for name in found if name not in fixed]
    if chosen:
        total = len(spec.linears()) + 1 - len(fixed)
        said.append(f"By {why}, {len(chosen)} of {total} matrices have {found[chosen[0]]} bits.")
    return tuple(said)
