"""The parity legs (``docs/parity.md``): each source of error measured apart, on the same cases, against its own limit.

Rules:
1. A leg compares two neighbours in the chain Hugging Face → portable decoder → emitted graph → quantized graph
   on strict kernels → the package as it runs.
2. Every leg is driven along the reference's tokens; the candidate's own choices never excuse it.
3. Limits of errors hold at every position. Distributions (KL, top-1) are compared at the answers' positions only, which
   the reference's path tells: behind an end token there is nothing that anybody reads, or that a model was trained for.
4. A leg that did not run is None and is named in ``not_checked`` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_export.core.compare import Leg, relative_error
from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.core.limits import FOLD_RELATIVE, LOWERING_RELATIVE, PIXEL_LEVELS
from scale_export.core.records import Float32
from scale_export.core.words import Precision
from scale_export.device.generation import Generator, Inputs
from scale_export.plan.targets import ParityLimits

from .cases import Case


def path_logits(generator: Generator, cases: Sequence[Case]) -> list[Float32]:
    """One engine's logits along every case's path, each ``[steps, V]``."""
    return [generator.forced_logits(case.inputs, case.tokens) for case in cases]


def answer_logits(cases: Sequence[Case], logits: Sequence[Float32]) -> Float32:
    """The rows at the cases' answer positions ``[N, V]``, of logits along every case's path."""
    return np.concatenate([rows[: case.answer_positions] for case, rows in zip(cases, logits, strict=True)])


def error_leg(reference: Sequence[Float32], other: Sequence[Float32], limit: float) -> Leg:
    """The worst relative error over all cases; infinite errors are written as null and fail."""
    value = max(relative_error(r, o) for r, o in zip(reference, other, strict=True))
    return {
        "metric": "max |Δlogit| / max |logit|",
        "value": value if np.isfinite(value) else None,
        "limit": limit,
        "cases": len(reference),
        "passed": value <= limit,
    }


def fold_leg(cases: Sequence[Case], portable: Sequence[Float32]) -> Leg:
    """Hooked Hugging Face model against the folded or gated portable decoder, float32."""
    return error_leg([case.logits for case in cases], portable, FOLD_RELATIVE)


def lowering_leg(portable: Sequence[Float32], emitted: Sequence[Float32], precision: Precision) -> Leg:
    """Portable decoder against the unquantized emitted graph in its runtime."""
    return {**error_leg(portable, emitted, LOWERING_RELATIVE[precision]), "precision": precision}


def distribution_leg(
    cases: Sequence[Case],
    reference: Sequence[Float32],
    other: Sequence[Float32],
    max_kl: float | None,
    min_top1: float | None,
) -> Leg:
    """Mean KL divergence and top-1 agreement over the ``steps`` answer positions; an infinite KL is null and fails."""
    left, right = answer_logits(cases, reference), answer_logits(cases, other)
    kl, top1 = mean_kl(left, right), top1_agreement(left, right)
    assert kl is not None and top1 is not None, "there is at least one case"
    finite = bool(np.isfinite(kl))
    within = finite and (max_kl is None or kl <= max_kl) and (min_top1 is None or top1 >= min_top1)
    return {
        "kl": kl if finite else None,
        "top1_agreement": top1,
        "limits": {"kl": max_kl, "top1_agreement": min_top1},
        "cases": len(cases),
        "steps": len(left),
        "passed": within,
    }


def quantization_leg(
    cases: Sequence[Case],
    plain: Sequence[Float32],
    strict: Sequence[Float32],
    limits: ParityLimits,
    codes: Mapping[str, tuple[str, str]],
) -> Leg:
    """Quantized graph on strict kernels against the unquantized one; folding must not have moved integer codes.

    ``codes``: matrix → SHA-256 of the base's codes and of the package's, for every folded matrix.
    """
    leg = distribution_leg(cases, plain, strict, limits.max_kl, limits.min_top1_agreement)
    if codes:
        leg["folded_matrices"] = len(codes)
        leg["codes_sha256"] = {name: packaged for name, (_, packaged) in codes.items()}
        leg["codes_identical"] = all(base == packaged for base, packaged in codes.values())
        leg["passed"] = leg["passed"] and leg["codes_identical"]
    return leg


def runtime_leg(
    cases: Sequence[Case], strict: Sequence[Float32], shipped: Sequence[Float32], limits: ParityLimits
) -> Leg:
    """The package's kernels on this machine against the strictest ones."""
    return distribution_leg(cases, strict, shipped, limits.runtime_max_kl, limits.runtime_min_top1_agreement)


def preprocessing_leg(reference: Sequence[Inputs], packaged: Sequence[Inputs], levels_per_unit: float) -> Leg:
    """The package's own image and prompt path against Hugging Face's processor.

    Args:
        levels_per_unit: how many 8-bit levels one unit of ``pixel_values`` is: 255 · image_std.
    """
    worst = 0.0
    ids = True
    for left, right in zip(reference, packaged, strict=True):
        ids = ids and _same(left["input_ids"], right["input_ids"])
        if left.keys() != right.keys():
            worst = float("inf")
        elif "pixel_values" in left:
            worst = max(
                worst, _pixel_difference(left["pixel_values"], right["pixel_values"]) * levels_per_unit
            )
    return {
        "metric": "max pixel difference, 8-bit levels",
        "value": worst if np.isfinite(worst) else None,
        "limit": PIXEL_LEVELS,
        "ids_identical": ids,
        "cases": len(reference),
        "passed": bool(ids and worst <= PIXEL_LEVELS),
    }


def same_inputs(left: Inputs, right: Inputs) -> bool:
    """Whether two processors prepared the very same."""
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.shape == right.shape and bool((left == right).all())


def _pixel_difference(left: NDArray[Any], right: NDArray[Any]) -> float:
    return float(np.abs(left - right).max()) if left.shape == right.shape else float("inf")
