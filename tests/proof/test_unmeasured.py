"""A leg that compared nothing, or numbers that are not finite, fails: planted into each kind of comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scale_export.doctor.examine import _held
from scale_export.proof.legs import Products, fold_leg, lowering_leg
from scale_export.proof.preprocessing import preprocessing_leg
from scale_export.proof.products import Forward, first_departure, largest_error
from scale_export.proof.stored_tensors import TensorsLeg
from tests.helpers import parity as made

NAN, INF = float("nan"), float("inf")
BAD = (NAN, INF, -INF)


@pytest.mark.parametrize("value", BAD)
def test_an_error_that_is_not_finite_fails_every_leg(value: float) -> None:
    legs = [
        made.fold(value), made.lowering(value), made.preprocessing(value), made.quantization(value),
        made.runtime(value), made.runtime(value, max_kl=None, min_top1=None),
        made.runtime(0.001, top1_agreement=value if value < 0 else NAN),
    ]  # fmt: skip
    assert [leg.passed for leg in legs] == [False] * len(legs)


def test_no_case_and_no_position_fail() -> None:
    assert not fold_leg([], []).passed
    assert not lowering_leg([], [], "float32").passed
    assert not preprocessing_leg([], [], 255.0).passed
    assert made.runtime(0.0, positions=0).passed is False
    assert not made.task(made.agreement(0, share=None, outside_near_ties=None)).passed
    unheld = made.LIMITS.model_copy(update={"min_answer_agreement": None, "min_gain_retention": None})
    assert not made.task(made.agreement(0, share=None, outside_near_ties=None), limits=unheld).passed
    assert made.task(made.agreement(1), limits=unheld).passed
    tensors = TensorsLeg(
        error=made.error(0.0, 1.0), cases=0, beyond=(), layout_identical=True, untouched=0, changed=()
    )
    assert not tensors.passed and replace(tensors, untouched=1).passed


@pytest.mark.parametrize("value", BAD)
def test_pixels_that_are_not_finite_fail(value: float) -> None:
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    ids = np.zeros((1, 1), np.int64)
    good = {"input_ids": ids, "pixel_values": pixels}
    wrong = {"input_ids": ids, "pixel_values": np.full_like(pixels, value)}
    assert preprocessing_leg([good, good], [good, good], 255.0).passed
    for one, other in ((good, wrong), (wrong, good), (wrong, wrong)):
        assert not preprocessing_leg([good, one, good], [good, other, good], 255.0).passed


def forward(**outputs: float) -> Forward:
    x = np.ones((1, 2, 4), np.float32)
    return {name: (x, np.full_like(x, value)) for name, value in outputs.items()}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("wrong_side", [0, 1])
def test_a_product_that_is_not_finite_departs_on_either_side(value: float, wrong_side: int) -> None:
    sides: Any = [[forward(a=1.0, b=1.0)], [forward(a=1.0, b=1.0)]]
    assert first_departure(*sides, 1e-5) is None and largest_error(*sides) == 0
    sides[wrong_side] = [forward(a=1.0, b=value)]
    found = first_departure(*sides, 1e-5)
    assert found is not None and (found.matrix, found.at_input) == ("b", False)
    assert largest_error(*sides) == INF


def test_no_product_is_no_proof() -> None:
    worst = largest_error([], [])
    products = Products(error=made.error(worst, 1e-5), matrices=0, first_departure=None)
    assert first_departure([], [], 1e-5) is None and not products.passed
    assert not made.lowering(products=products).passed


@pytest.mark.parametrize("errors", [{"a": NAN, "b": 0.1}, {"a": 0.1, "b": NAN}, {"a": 0.1, "b": INF}])
def test_an_examined_output_that_is_not_finite_fails(errors: dict[str, float]) -> None:
    assert _held("vision tower", {"a": 0.1, "b": 0.1}, 1.0, "right").passed
    assert _held("vision tower", errors, 1.0, "right").passed is False
