"""Quantization methods: codes that folding leaves alone, the same twice, and errors in the order that theory says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scale_export.core import limits
from scale_export.core.errors import UserError
from scale_export.model.folding import fold
from scale_export.quantize import (
    Moments,
    NoStatistics,
    QuantizedWeights,
    load_quantizer,
    quantize,
    quantizer_names,
)
from scale_export.quantize.equalize import EqualizedWeights
from scale_export.quantize.methods import gptq
from tests.helpers.coefficients import random_coefficients
from tests.helpers.decoding import gate_of, last_logits, relative
from tests.helpers.moments import Correlated, correlated

METHODS = quantizer_names()
BLOCKWISE = [name for name in METHODS if "int4" in load_quantizer(name).precisions]
CALIBRATED = [name for name in METHODS if load_quantizer(name).calibration != "unused"]


def output_error(weight: Any, block: Any, moments: Moments) -> float:
    """tr(E H Eᵀ): the expected squared error of the products."""
    error = (block.dequantize() - weight).astype(np.float64)
    return float(np.einsum("oi,oi->", error @ moments.matrix, error))


def matrix(width: int = 128, rows: int = 48) -> Any:
    return np.random.default_rng(5).standard_t(5, (rows, width)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_codes_are_byte_identical_before_and_after_folding(base_of: Any, name: str, bits: Any):
    base, method = base_of("llava", "llama-biased"), load_quantizer(name)
    coefficients, statistics = random_coefficients(base, "all"), Correlated(base.spec)
    folded = quantize(
        fold(base.weights, coefficients, "weights"), method, bits=bits, block_size=32, statistics=statistics
    ).weights
    plain = QuantizedWeights.prepared(base.weights, method, bits=bits, block_size=32, statistics=statistics)
    assert isinstance(folded, QuantizedWeights) and folded.factors
    for matrix_name in (*base.spec.linears(), "embedding"):
        assert folded.block(matrix_name).codes_sha256 == plain.block(matrix_name).codes_sha256
    expected = last_logits(base, plain, gate_of(base, coefficients))
    assert relative(expected, last_logits(base, folded)) <= limits.FOLD_RELATIVE


@pytest.mark.parametrize("width", [128, 96, 70])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_a_method_gives_the_same_twice_and_fills_up_partial_blocks(name: str, bits: Any, width: int):
    weight, moments, method = matrix(width), correlated(width), load_quantizer(name)
    weight[3] = 0
    first, second = (method.quantize(weight, bits, 32, moments) for _ in range(2))
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.scales, second.scales)
    shape = (48, -(-width // 32), 32 * bits // 8)
    assert first.codes.shape == shape and first.scales.shape == shape[:2]
    values = first.dequantize()
    assert values.shape == weight.shape and np.isfinite(values).all()
    np.testing.assert_array_equal(values[3], 0)
    error = method.quantize(weight, bits, 32).dequantize() - weight
    assert np.linalg.norm(error) < (0.12 if bits == 4 else 0.01) * np.linalg.norm(weight)


def test_each_method_is_best_at_what_it_optimises():
    weight, moments = matrix(), correlated(128)
    blocks = {
        name: load_quantizer(name).quantize(weight, 4, 32, moments) for name in ("rtn", "hqq", "mse", "gptq")
    }
    plain = load_quantizer("mse").quantize(weight, 4, 32)
    squared = {name: np.square(block.dequantize() - weight).sum() for name, block in blocks.items()}
    assert np.square(plain.dequantize() - weight).sum() < min(squared.values())
    weighted = {n: (np.square(b.dequantize() - weight) * moments.diagonal).sum() for n, b in blocks.items()}
    assert weighted["mse"] == min(weighted.values())
    sparse = {n: (np.abs(b.dequantize() - weight) ** 0.7).sum() for n, b in blocks.items()}
    assert sparse["hqq"] < sparse["rtn"]
    outputs = {n: output_error(weight, b, moments) for n, b in blocks.items()}
    assert outputs["gptq"] < 0.6 * min(outputs["rtn"], outputs["mse"], outputs["hqq"])


def test_gptq_without_moments_is_scale_search():
    weight = matrix()
    blocks = [load_quantizer(name).quantize(weight, 4, 32) for name in ("gptq", "mse")]
    np.testing.assert_array_equal(blocks[0].codes, blocks[1].codes)


def test_gptq_on_other_inputs_is_worse_than_on_its_own():
    weight, moments = matrix(), correlated(128)
    method = load_quantizer("gptq")
    right = output_error(weight, method.quantize(weight, 4, 32, moments), moments)
    others = output_error(weight, method.quantize(weight, 4, 32, correlated(128, seed=9)), moments)
    shuffled = Moments(np.ascontiguousarray(moments.matrix[::-1, ::-1]))
    reversed_channels = output_error(weight, method.quantize(weight, 4, 32, shuffled), moments)
    assert others > 2 * right and reversed_channels > 2 * right


def test_feedback_the_wrong_way_round_is_worse(monkeypatch: pytest.MonkeyPatch):
    """The inverse of the reversed matrix's factor: corrections that look back instead of ahead."""
    weight, moments = matrix(), correlated(128)
    right = output_error(weight, load_quantizer("gptq").quantize(weight, 4, 32, moments), moments)
    honest = gptq.error_feedback
    monkeypatch.setattr(
        gptq, "error_feedback", lambda hessian, columns: honest(hessian, columns).T.contiguous()
    )
    broken = output_error(weight, load_quantizer("gptq").quantize(weight, 4, 32, moments), moments)
    assert broken > 1.5 * right


def in_order(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix's own order."""
    return torch.arange(weights.shape[0]), torch.arange(weights.numel())


def test_rounding_loud_columns_first_is_better_than_in_order(monkeypatch: pytest.MonkeyPatch):
    weight, method = matrix(width=256), load_quantizer("gptq")

    def errors() -> list[float]:
        seen = [correlated(256, seed) for seed in range(6)]
        return [output_error(weight, method.quantize(weight, 4, 32, moments), moments) for moments in seen]

    loud_first = errors()
    monkeypatch.setattr(gptq, "rounding_order", in_order)
    assert sum(loud_first) < 0.9 * sum(errors())


def test_whole_blocks_are_rounded_in_falling_order():
    weights = torch.rand(5, 32, generator=torch.Generator().manual_seed(0))
    first, columns = gptq.rounding_order(weights)
    assert sorted(columns.tolist()) == list(range(160))
    blocks = columns.view(5, 32) // 32
    assert torch.equal(blocks, first[:, None].expand(5, 32))
    ordered = weights.flatten()[columns].view(5, 32)
    assert (ordered.diff(dim=-1) <= 0).all() and (ordered.mean(-1).diff() <= 1e-6).all()


def test_feedback_in_another_order_than_the_columns_is_worse(monkeypatch: pytest.MonkeyPatch):
    weight, moments, honest = matrix(), correlated(128), gptq.error_feedback
    method = load_quantizer("gptq")
    right = output_error(weight, method.quantize(weight, 4, 32, moments), moments)
    monkeypatch.setattr(gptq, "error_feedback", lambda h, columns: honest(h, torch.arange(len(columns))))
    assert output_error(weight, method.quantize(weight, 4, 32, moments), moments) > 1.5 * right


@pytest.mark.parametrize("variant", ["llama", "llama-biased", "qwen2"])
@pytest.mark.parametrize("scope", ["last", "all"])
@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_scaled_channels_compute_the_same_function(base_of: Any, name: str, variant: str, scope: Any):
    base = base_of("llava", variant)
    gate = gate_of(base, random_coefficients(base, scope))
    equalized, _ = load_quantizer(name).prepare(base.weights, Correlated(base.spec), 4, 32)
    scaled = [
        name
        for name in base.spec.linears()
        if not torch.equal(equalized.matrix(name), base.weights.matrix(name))
    ]
    assert {name.rpartition(".")[2] for name in scaled} == {
        name.rpartition(".")[2] for name in base.spec.linears()
    }
    expected = last_logits(base, base.weights, gate)
    assert relative(expected, last_logits(base, equalized, gate)) <= limits.FOLD_RELATIVE


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_a_factor_left_unabsorbed_is_far_off(base_of: Any, name: str, monkeypatch: pytest.MonkeyPatch):
    base = base_of("llava", "llama")
    equalized, _ = load_quantizer(name).prepare(base.weights, Correlated(base.spec), 4, 32)
    expected = last_logits(base, base.weights)
    monkeypatch.setattr(EqualizedWeights, "rows", lambda self, name: None)
    assert relative(expected, last_logits(base, equalized)) > 0.01


def test_awq_rounds_a_group_no_worse_than_scale_search_does(base_of: Any):
    base = base_of("llava", "llama")
    statistics = Correlated(base.spec)
    equalized, seen = load_quantizer("awq").prepare(base.weights, statistics, 4, 32)
    for name in ("layers.0.gate_proj", "layers.1.o_proj", "lm_head"):
        weight, moments = base.weights.matrix(name).numpy(), statistics.moments(name)
        assert moments is not None
        columns = equalized.columns(name)  # type: ignore[attr-defined]
        block = load_quantizer("awq").quantize(weight * columns, 4, 32, seen.moments(name))
        error = block.dequantize() / columns - weight
        ours = float(np.einsum("oi,oi->", error @ moments.matrix, error))
        plain = load_quantizer("mse").quantize(weight, 4, 32, moments)
        assert ours <= 1.01 * output_error(weight, plain, moments)


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_without_statistics_the_weights_are_left_alone(base_of: Any, method: str):
    base = base_of("llava", "llama")
    equalized, _ = load_quantizer(method).prepare(base.weights, NoStatistics(), 4, 32)
    for name in base.spec.linears():
        assert torch.equal(equalized.matrix(name), base.weights.matrix(name))


def test_an_unknown_method_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="did you mean 'gptq'"):
        load_quantizer("gtpq")
    assert METHODS == ["awq", "gptq", "hqq", "mse", "rtn", "smoothquant"]
