"""Folding: exact where it is allowed, scale-only on quantized weights, and wrong where it is naive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scale_export.core import limits
from scale_export.core.errors import UserError
from scale_export.model.blocks import BlockMatrix
from scale_export.model.folding import Factor, FoldedWeights, fold, fold_blocks, fold_factors
from scale_export.quantize import QuantizedWeights, load_quantizer, quantize
from tests.helpers.coefficients import random_coefficients
from tests.helpers.decoding import gate_of, last_logits, relative


@pytest.mark.parametrize("variant", ["llama", "llama-biased", "qwen2"])
@pytest.mark.parametrize(("scope", "layers"), [("all", None), ("last", (2,))])
def test_weights_equal_the_gate_where_folding_is_exact(base_of: Any, variant: str, scope: Any, layers: Any):
    base = base_of("llava", variant)
    coefficients = random_coefficients(base, scope, layers)
    folded = fold(base.weights, coefficients, "weights")
    expected = last_logits(base, base.weights, gate_of(base, coefficients))
    assert relative(expected, last_logits(base, folded.weights)) <= limits.FOLD_RELATIVE


def test_naive_folding_of_last_token_scalars_is_far_off(base_of: Any):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    expected = last_logits(base, base.weights, gate_of(base, coefficients))
    assert relative(expected, last_logits(base, fold(base.weights, coefficients, "weights").weights)) > 0.05


def test_a_bias_of_down_proj_is_scaled_and_one_of_o_proj_is_not(base_of: Any):
    base = base_of("llava", "llama-biased")
    coefficients = random_coefficients(base, "all")
    folded = fold(base.weights, coefficients, "weights").weights
    mlp = float(coefficients.mlp_scale[1])
    torch.testing.assert_close(
        folded.bias("layers.1.down_proj"), base.weights.bias("layers.1.down_proj") * mlp
    )
    torch.testing.assert_close(folded.bias("layers.1.o_proj"), base.weights.bias("layers.1.o_proj"))
    unscaled = {
        name: replace(factor, bias=1.0) for name, factor in fold_factors(base.spec, coefficients).items()
    }
    expected = last_logits(base, base.weights, gate_of(base, coefficients))
    broken = last_logits(base, FoldedWeights(base=base.weights, factors=unscaled))
    assert relative(expected, broken) > 100 * limits.FOLD_RELATIVE


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_then_fold_keeps_codes_and_multiplies_scales(base_of: Any, bits: Any):
    base = base_of("llava", "llama-biased")
    coefficients = random_coefficients(base, "all")
    folded = quantize(
        fold(base.weights, coefficients, "weights"), load_quantizer("rtn"), bits=bits, block_size=32
    )
    plain = QuantizedWeights(base=base.weights, quantizer=load_quantizer("rtn"), bits=bits, block_size=32)
    for name, factor in folded.factors.items():
        packed, bare = folded.weights.block(name), plain.block(name)
        assert packed.codes_sha256 == bare.codes_sha256
        np.testing.assert_allclose(packed.dequantize(), bare.dequantize() * factor.columns, rtol=1e-6)
    expected = last_logits(base, plain, gate_of(base, coefficients))
    assert relative(expected, last_logits(base, folded.weights)) <= limits.FOLD_RELATIVE


def test_a_block_over_two_heads_is_refused_unless_their_scalars_are_equal():
    matrix = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    packed = load_quantizer("rtn").quantize(matrix, 8, 64)
    columns = np.repeat(np.array([0.5, 2], np.float32), 32)
    with pytest.raises(UserError, match="straddles heads"):
        fold_blocks("layers.0.o_proj", packed, Factor(columns=columns, bias=1.0))
    same = fold_blocks("layers.0.o_proj", packed, Factor(columns=np.full(64, 2, np.float32), bias=1.0))
    np.testing.assert_array_equal(same.scales, packed.scales * 2)


@pytest.mark.parametrize("scalar", [0.0, -1.5, 1e-3])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_and_negative_scalars_fold_exactly(bits: Any, scalar: float):
    matrix = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    packed = load_quantizer("rtn").quantize(matrix, bits, 32)
    folded = fold_blocks("x", packed, Factor(columns=np.full(32, scalar, np.float32), bias=1.0))
    np.testing.assert_allclose(folded.dequantize(), packed.dequantize() * np.float32(scalar), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [32, 64, 70])
def test_packing_round_trips_and_stays_within_half_a_step(bits: Any, width: int):
    matrix = np.random.default_rng(2).standard_normal((6, width)).astype(np.float32)
    packed = load_quantizer("rtn").quantize(matrix, bits, 32)
    assert isinstance(packed, BlockMatrix)
    steps = np.repeat(np.abs(packed.scales), 32, axis=1)[:, :width]
    error = np.abs(packed.dequantize() - matrix)
    # Symmetric codes reach one step further down than up: the block's largest value may be clipped by one.
    assert (error <= 1.01 * steps).all()
    assert (error <= 0.51 * steps).mean() > 0.9
    assert packed.integers().shape == matrix.shape
