"""What a ``parity.json`` may hold, made up."""

from __future__ import annotations

from scale_export.core.intervals import wilson


def accuracy(share: float, cases: int) -> dict[str, float]:
    low, high = wilson(round(share * cases), cases)
    return {"value": round(share * cases) / cases, "low": low, "high": high, "cases": cases}


def parity(**changes) -> dict:
    error = {"metric": "max |Δlogit| / max |logit|", "cases": 24, "passed": True}
    shift = {
        "top1_agreement": 0.9875,
        "cases": 24,
        "limits": {"kl": 0.01, "top1_agreement": 0.97},
        "passed": True,
    }
    shares = {"base": (0.421, 0.831), "scale": (0.733, 0.821), "export": (0.729, 0.822)}
    task = {
        "dataset": "gridworld",
        "cases": 1536,
        "accuracy": {
            who: {"spatial": accuracy(spatial, 768), "other": accuracy(other, 768)}
            for who, (spatial, other) in shares.items()
        },
        "agreement": 0.9863,
        "agreement_outside_near_ties": 0.99928,
        "near_ties": 21,
        "difference": 0.002,
        "difference_95": [-0.0025, 0.0071],
        "mcnemar_p": 0.549,
        "gain_retention": 0.987,
        "gain_retention_95": [0.957, 1.017],
        "limits": {"gain_retention": 0.95, "agreement_outside_near_ties": 0.95, "near_ties": 0.02},
        "passed": True,
    }
    legs = {
        "fold": {**error, "value": 1.31e-6, "limit": 1e-5},
        "lowering": {**error, "value": 8.4e-7, "limit": 1e-4},
        "quantization": {**shift, "kl": 0.0031, "folded_matrices": 8, "codes_identical": True},
        "runtime": {**shift, "kl": 0.0011},
        "preprocessing": {
            **error,
            "metric": "max pixel difference",
            "value": 0.0,
            "limit": 1.0,
            "ids_identical": True,
        },
        "task": task,
    }
    legs = {name: changes.get(name, leg) for name, leg in legs.items()}
    failed = any(leg and leg["passed"] is False for leg in legs.values())
    return {
        "schema": 1,
        "passed": changes.get("passed", not failed),
        "legs": legs,
        "not_checked": changes.get("not_checked", []),
        "answer_agreement": changes.get("answer_agreement"),
    }
