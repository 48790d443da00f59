"""The report as JSON: the keys that readers of ``parity.json`` rely on, and what is read back of it."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from scale_export.core.records import NotChecked
from scale_export.package.stored_report import failed_checks
from scale_export.proof.legs import Products, StorageLeg
from scale_export.proof.report import LEGS, MEANINGS
from scale_export.proof.stored_tensors import TensorsLeg
from tests.helpers import parity as made
from tests.helpers.parity import parity

ERROR = {"metric", "value", "limit", "cases", "passed"}
DIVERGENCE = {
    "kl", "kl_interval", "top1_agreement", "top1_interval", "decided_agreement", "decided_interval", "decided_steps",
    "limits", "undecided", "cases", "steps", "passed",
}  # fmt: skip
AGREEMENT = {
    "cases", "agreement", "agreement_outside_near_ties", "agreement_where_decided", "near_ties", "decided",
    "differences",
}  # fmt: skip
KEYS = {
    "fold": ERROR,
    "lowering": ERROR | {"precision", "weights", "products"},
    "quantization": DIVERGENCE | {"folded_matrices", "codes_sha256", "codes_identical"},
    "runtime": DIVERGENCE,
    "preprocessing": ERROR | {"ids_identical"},
    "task": AGREEMENT | {
        "dataset", "questions_sha256", "scoring", "unscored", "accuracy", "difference", "difference_95", "mcnemar_p",
        "equivalence", "gain_retention", "gain_retention_95", "limits", "passed",
    },
    "tensors": ERROR | {"layout_identical", "untouched", "untouched_identical", "changed", "not_finite"},
    "storage": ERROR | {"dtypes"},
}  # fmt: skip


def tensors(**changes: Any) -> TensorsLeg:
    known: dict[str, Any] = {
        "error": made.error(1.0, 1.0001, "half units"), "cases": 8, "beyond": (), "layout_identical": True,
        "untouched": 74, "changed": (),
    }  # fmt: skip
    return TensorsLeg(**{**known, **changes})


def full(**changes: Any) -> Any:
    """A report in which everything ran, a checkpoint's legs too."""
    products = Products(error=made.error(5e-7, 1e-5, "products"), matrices=29, first_departure=None)
    known: dict[str, Any] = {
        "lowering": made.lowering(weights="dequantized", products=products),
        "tensors": tensors(), "storage": StorageLeg(error=made.error(8e-4, 1.5e-3), cases=24, dtypes=("F16",)),
        "attribution": made.attribution(), "answer_agreement": made.answers(),
        "not_checked": [NotChecked("device", "Core ML: it is not here")],
    }  # fmt: skip
    return parity(**{**known, **changes})


def test_the_keys_of_parity_json_are_those_that_readers_know():
    found = json.loads(json.dumps(full().to_json(), allow_nan=False))
    assert {name: set(leg) for name, leg in found["legs"].items()} == KEYS
    assert tuple(found["legs"]) == tuple(MEANINGS) and found["passed"] is True
    assert set(found["answer_agreement"]) == AGREEMENT | {"limit", "various", "passed"}
    assert set(found["attribution"]) == {"metric", "whole", "parts", "cases", "steps", "passed"}
    assert found["not_checked"] == ["device: Core ML: it is not here"]
    assert found["legs"]["quantization"]["steps"] == found["attribution"]["steps"] == made.POSITIONS
    assert set(found["legs"]["task"]["accuracy"]["scale"]["spatial"]) == {"value", "low", "high", "cases"}
    assert tuple(parity().to_json()["legs"]) == LEGS  # type: ignore[arg-type]


def test_records_cannot_be_changed():
    for leg in full().legs.values():
        with pytest.raises(FrozenInstanceError):
            setattr(leg, fields(leg)[0].name, None)


@pytest.mark.parametrize(
    "change",
    [
        {"layout_identical": False},
        {"changed": tuple(f"tensor {i}" for i in range(20))},
        {"beyond": ("one tensor",)},
    ],
    ids=["layout", "untouched", "touched"],
)
def test_each_way_in_which_tensors_differ_fails_their_leg(change: Any):
    assert tensors().passed is True
    leg = tensors(**change)
    stored: Any = leg.to_json()
    assert leg.passed is stored["passed"] is False and len(stored["changed"]) <= 8
    assert full(tensors=leg).failed == ["tensors"]


def test_products_that_depart_fail_the_lowering_leg_whatever_the_whole_says():
    departed = Products(
        error=made.error(1e-3, 1e-5, "products"), matrices=29, first_departure="layers.0.q_proj"
    )
    leg = made.lowering(products=departed)
    assert leg.error.passed and not leg.passed and [row.beyond for row in leg.rows()] == [False, True]


def test_failures_are_read_back():
    report = full(task=None, fold=made.fold(float("nan")), runtime=made.runtime(top1_agreement=0.1))
    assert (
        list(failed_checks(json.loads(json.dumps(report.to_json(), allow_nan=False))))
        == report.failed
        == ["fold", "runtime"]
    )


def test_a_reason_with_a_colon_stays_whole():
    report = full(task=None)
    report.skip("task", "refused: the set: a/b is not here")
    assert report.reason("task") == "refused: the set: a/b is not here"
    assert report.to_json()["not_checked"][-1] == "task: refused: the set: a/b is not here"  # type: ignore[index]
    assert report.reason("fold") == ""
