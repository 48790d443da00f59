"""Factors of a Core ML program: float16 holds each, and their product is the number that was meant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scale_export.backends.coreml.kernels import float16_factors


@pytest.mark.parametrize("value", [0.5, 0.1, (128 / 168) ** 0.5, (32 / 24) ** 0.5, 3.3, 10.0])
def test_factors_are_float16s_own_and_their_product_is_the_number(value: float):
    factors = float16_factors(value)
    assert all(float(np.float16(factor)) == factor for factor in factors)
    assert math.prod(factors) == pytest.approx(value, rel=2**-19)


def test_no_factor_where_it_is_one_and_one_where_float16_holds_it():
    assert float16_factors(1.0) == () and float16_factors(0.5) == (0.5,)
    one = float(np.float16((128 / 168) ** 0.5))
    assert abs(one / (128 / 168) ** 0.5 - 1) > 2**-14, "a single float16 would be this far off"
