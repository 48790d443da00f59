"""A parity report of an int8 package, made up: every leg within its limits."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from scale_export.core.compare import LargestError
from scale_export.core.intervals import Estimate, proportion
from scale_export.plan.targets import ParityLimits
from scale_export.proof.answers import Agreement, Difference, ParityAnswers
from scale_export.proof.attribution import Attribution, Loss
from scale_export.proof.distributions import Divergence, QuantizationLeg, RuntimeLeg
from scale_export.proof.legs import FoldLeg, LoweringLeg
from scale_export.proof.preprocessing import PreprocessingLeg
from scale_export.proof.report import ParityReport
from scale_export.proof.task import Accuracy, TaskLeg

CASES, POSITIONS, QUESTIONS = 24, 710, 768
"""Parity prompts, their answers' positions, and questions of either kind."""
LIMITS = ParityLimits(
    max_kl=0.01,
    min_top1_agreement=0.97,
    runtime_max_kl=0.01,
    runtime_min_top1_agreement=0.97,
    min_gain_retention=0.95,
    min_answer_agreement=0.95,
    near_tie_budget=0.02,
)


def error(value: float, limit: float, metric: str = "max |Δlogit| / max |logit|") -> LargestError:
    return LargestError(metric=metric, value=value, limit=limit)


def divergence(kl: float, **changes: Any) -> Divergence:
    """Of that mean in every case, and 98.75 % of the best tokens, all decided, unless ``changes`` say otherwise."""
    known = {"top1_agreement": 0.9875, "positions": POSITIONS, "max_kl": 0.01, "min_top1": 0.97} | changes
    share, positions = known.pop("top1_agreement"), known.pop("positions")
    low, high = known.pop("top1_interval", (share - 0.01, min(1.0, share + 0.01)))
    bound = kl if np.isfinite(kl) else None
    top1 = Estimate(value=share, low=low, high=high, cases=positions)
    return Divergence(
        kl_estimate=Estimate(value=kl, low=bound, high=bound, cases=positions),
        top1_estimate=top1,
        decided_estimate=top1,
        **known,
    )


def fold(value: float = 1.31e-6) -> FoldLeg:
    return FoldLeg(error=error(value, 1e-5), cases=CASES)


def lowering(value: float = 8.4e-7, **changes: Any) -> LoweringLeg:
    return LoweringLeg(**{"error": error(value, 1e-4), "cases": CASES, "precision": "float32", **changes})


def quantization(kl: float = 0.0031, *, moved: bool = False, **changes: Any) -> QuantizationLeg:
    codes = {f"layers.{i}.o_proj": ("a" * 64, ("b" if moved and i == 3 else "a") * 64) for i in range(8)}
    return QuantizationLeg(divergence=divergence(kl, **changes), cases=CASES, codes=codes)


def runtime(kl: float = 0.0011, **changes: Any) -> RuntimeLeg:
    return RuntimeLeg(divergence=divergence(kl, **changes), cases=CASES)


def preprocessing(value: float = 0.0, *, ids_identical: bool = True) -> PreprocessingLeg:
    found = error(value, 1.0, "max pixel difference")
    return PreprocessingLeg(error=found, ids_identical=ids_identical, cases=CASES)


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high, cases=2 * QUESTIONS)


def accuracy(spatial: float, other: float) -> Accuracy:
    right = [np.arange(QUESTIONS) < round(share * QUESTIONS) for share in (spatial, other)]
    whole = proportion(np.concatenate(right))
    return Accuracy(all=whole, spatial=proportion(right[0]), other=proportion(right[1]))


def difference(number: int, **changes: Any) -> Difference:
    known: dict[str, Any] = {
        "id": f"q{number}", "prompt": "where?", "truth": "left", "base": "right", "scale": "left",
        "export": "right", "right": None, "near_tie": False,
    }  # fmt: skip
    return Difference(**{**known, **changes})


def agreement(cases: int = CASES, **changes: Any) -> Agreement:
    known: dict[str, Any] = {
        "share": 1.0,
        "outside_near_ties": 1.0,
        "where_decided": 1.0,
        "near_ties": 0,
        "decided": cases,
        "differing": 0,
        "listed": (),
    }
    return Agreement(cases=cases, **{**known, **changes})


def answers(cases: int = CASES, **changes: Any) -> ParityAnswers:
    """The agreement on the parity prompts, held to 0.95."""
    own = {name: changes.pop(name) for name in ("limit", "various") if name in changes}
    whole = agreement(cases, **changes)
    parts = {part.name: getattr(whole, part.name) for part in fields(whole)}
    return ParityAnswers(**parts, **{"limit": 0.95, "various": True, **own})


def task(agreed: Agreement | None = None, **changes: Any) -> TaskLeg:
    answers = agreement(
        2 * QUESTIONS,
        share=0.9863,
        outside_near_ties=0.99928,
        near_ties=21,
        where_decided=0.9995,
        decided=1400,
    )
    known: dict[str, Any] = {
        "dataset": "gridworld", "questions_sha256": "0" * 64, "scoring": "strict", "unscored": 0,
        "base": accuracy(0.421, 0.831), "scale": accuracy(0.733, 0.821), "export": accuracy(0.729, 0.822),
        "agreement": agreed or answers, "difference": estimate(0.002, -0.0025, 0.0071), "mcnemar_p": 0.549,
        "equivalent": None, "equivalent_spatial": None, "retention": estimate(0.987, 0.957, 1.017),
        "limits": LIMITS,
    }  # fmt: skip
    return TaskLeg(**{**known, **changes})


def attribution(quantization: float = 0.0031) -> Attribution:
    parts = {
        "fold": Loss(kl=2.5e-14, top1_changed=0.0),
        "quantization": Loss(kl=quantization, top1_changed=0.0125),
    }
    whole = Loss(kl=0.0031 + 2.5e-14, top1_changed=0.0125)
    return Attribution(whole=whole, parts=parts, cases=CASES, positions=POSITIONS)


def parity(**changes: Any) -> ParityReport:
    """The report, with other legs or none in place of some of them."""
    known: dict[str, Any] = {
        "fold": fold(), "lowering": lowering(), "quantization": quantization(), "runtime": runtime(),
        "preprocessing": preprocessing(), "task": task(),
    }  # fmt: skip
    return ParityReport(**{"executed_by": "a test", **known, **changes})
