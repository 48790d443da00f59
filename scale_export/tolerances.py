"""The one home of the numerical limits that hold for every target (contract C7).

Limits that depend on a target's precision (KL, agreement, retention) live in ``targets/<name>.toml``.
"""

from __future__ import annotations

from .records import Precision

FOLD_RELATIVE = 1e-5
"""max |Δlogit| / max |logit| between the hooked Hugging Face model and the portable decoder, float32."""

LOWERING_RELATIVE: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-3}
"""The same ratio between the portable decoder and the emitted graph in its runtime, before quantization."""

ROUNDING = 1e-12
"""How far float64 sums may lie from their whole, as a share of the largest summand or of 1."""

PIXEL_LEVELS = 1.0
"""Largest difference of a preprocessed pixel from Hugging Face's, in 8-bit levels."""

NEAR_TIE_MARGIN = 1e-3
"""A reference step is a near-tie when its two best logits differ by less than this share of max |logit|."""

SELFTEST_RELATIVE: dict[Precision, float] = {"float32": 1e-4, "float16": 5e-3, "int8": 5e-2, "int4": 5e-2}
"""max |Δlogit| / max |logit| of a self-test case against the logits recorded at export.

Quantized graphs at accuracy level 4 round activations to int8 in kernels that differ from machine to
machine, so theirs is wider.
"""

INTERPRETER_RTOL, INTERPRETER_ATOL = 2e-5, 2e-6
"""``numpy.allclose`` limits of one operation of ``scale_export.mil`` against PyTorch's, float32."""

INTERPRETER_RELATIVE: dict[Precision, float] = {"float32": 1e-5, "float16": 2e-3}
"""max |Δ| / max |value| of a whole program in ``scale_export.mil`` against PyTorch's float32, by arithmetic."""
