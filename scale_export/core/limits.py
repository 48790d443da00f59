"""The one home of the numerical limits that hold for every target (``docs/parity.md``).

Limits that depend on a target's precision (KL, agreement, retention) live in ``targets/<name>.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable

from .words import Precision

FOLD_RELATIVE = 1e-5
"""max |Δlogit| / max |logit| between the hooked Hugging Face model and the portable decoder, float32."""

LOWERING_RELATIVE: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-3}
"""The same ratio between the portable decoder and the emitted graph in its runtime, both on the same weights."""

ROUNDING = 1e-12
"""How far float64 sums may lie from their whole, as a share of the largest summand or of 1."""

STORAGE_BITS: dict[str, int] = {"F32": 24, "F16": 11, "BF16": 8}
"""Significant bits of the dtypes that scalars can be folded into, as safetensors spells them."""

STORAGE_HALF_ULPS: dict[str, float] = {"F32": 1.0, "F16": 1 + 2.0**-13, "BF16": 1 + 2.0**-16}
"""max |stored − exact product| of a folded tensor, in half units of the last place of its dtype.

A product rounded to float32 and then to p bits is off by half a unit of the p bits, and by half a float32
unit, which is 2^(p − 24) of the former. In float32 there is one rounding only.
"""


def storage_relative(dtypes: Iterable[str]) -> float:
    """max |Δlogit| / max |logit| between the hooked model and the folded checkpoint, both in float32 arithmetic.

    Storage moves a folded weight by at most u = 2^-p of itself (p significant bits), by u/√3 on average. A
    product of many weights moves by as much of its own size, and so does the sum of all layers' products, since
    they add in quadrature like the products themselves. The largest of many logits lies within five such
    deviations: 5 · u/√3 < 3u. To that comes what float32 arithmetic differs by.
    """
    return FOLD_RELATIVE + 3 * max((2.0 ** -STORAGE_BITS[dtype] for dtype in dtypes), default=0.0)


PRODUCT_RELATIVE = 1e-5
"""max |Δ| / max |value| of one product of w8a8's graph, or of what enters it, against the reference's on its inputs.

Both sides sum as many float32 terms as a layer is wide, in other orders, each rounded to 2^-24 of the sum: errors add
up like √width, to 2^-24 · √28,000 = 1e-5 in the widest layers. A range that is a thousandth off moves inputs by more.
"""

PIXEL_LEVELS = 1.0
"""Largest difference of a preprocessed pixel from Hugging Face's, in 8-bit levels."""

FACT_LEVELS = 0.01
"""The same of a picture that ``runtime.json``'s facts prepare, where both sides resample to whole levels by Pillow.

Float32 arithmetic differs by less than 1e-4 levels; a mean that is off by one level, by one.
"""

NEAR_TIE_MARGIN = 1e-3
"""A reference step is a near-tie when its two best logits differ by less than this share of max |logit|."""

DECIDED_ODDS = 2.0
"""A reference is decided at a position whose best token it gives at least this many times the next one's probability.

Elsewhere another best token costs nobody anything: the two are near equals. Random models are decided nowhere.
"""

SELFTEST_RELATIVE: dict[Precision, float] = {
    "float32": 1e-4,
    "float16": 5e-3,
    "int8": 5e-2,
    "int4": 5e-2,
    "w8a8": 5e-2,
}
"""max |Δlogit| / max |logit| of a self-test case against the logits recorded at export.

Quantized graphs at accuracy level 4 and those of w8a8 round activations to int8, in kernels that differ from machine
to machine or from inputs that do, so theirs is wider.
"""

GATE_RESPONSE = (0.5, 1.5)
"""How far logits must move between two strengths, as a share of how far they moved at export, along the same direction.

A runtime that drops the gate gives 0, one that honours it 1 and the noise of its kernels, which this leaves room for.
"""

GATE_TOLD_APART = 0.1
"""The share of a self-test's tolerance that strengths must be apart, of max |logit|, for that noise to be small."""

INTERPRETER_RTOL, INTERPRETER_ATOL = 2e-5, 2e-6
"""``numpy.allclose`` limits of one operation of ``scale_export.mil`` against PyTorch's, float32."""

INTERPRETER_RELATIVE: dict[Precision, float] = {"float32": 1e-5, "float16": 2e-3}
"""max |Δ| / max |value| of a whole program in ``scale_export.mil`` against PyTorch's float32, by arithmetic."""
