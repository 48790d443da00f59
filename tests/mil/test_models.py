"""Whole models: what coremltools saved of them gives what PyTorch gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from scale_export import mil
from scale_export.core import limits
from tests.helpers import mil_packages as packages
from tests.helpers.mil_packages import PREFILL

FLOAT32, FLOAT16 = (limits.INTERPRETER_RELATIVE[kind] for kind in ("float32", "float16"))


def difference(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def rounded(module: nn.Module) -> nn.Module:
    """The module with its weights rounded to float16, as a float16 package stores them."""
    return module.half().float()


def generate(run: Callable[[str, np.ndarray, int], Any], tokens: np.ndarray) -> list[np.ndarray]:
    """Logits of a prefill and of single steps after it."""
    steps = [np.asarray(run("prefill", tokens[:, :PREFILL], 0))]
    return steps + [
        np.asarray(run("decode", tokens[:, at : at + 1], at)) for at in range(PREFILL, tokens.shape[1])
    ]


def by_torch(module: nn.Module, tokens: np.ndarray) -> list[np.ndarray]:
    return generate(lambda _, x, at: module(torch.tensor(x), torch.tensor([at], dtype=torch.int32)), tokens)


def by_package(path: Path, arithmetic: mil.Arithmetic, tokens: np.ndarray) -> list[np.ndarray]:
    model = mil.load(path, arithmetic)
    state = model.new_state()
    return generate(lambda name, x, at: model.run(name, {"x": x, "position": [at]}, state)["y"], tokens)


@pytest.mark.parametrize(("arithmetic", "limit"), [("float32", FLOAT32), ("float16", FLOAT16)])
def test_stateful_decoder(
    decoder_package: Path, tokens: np.ndarray, arithmetic: mil.Arithmetic, limit: float
):
    expected = by_torch(rounded(packages.decoder()), tokens)
    actual = by_package(decoder_package, arithmetic, tokens)
    assert max(map(difference, actual, expected)) < limit


def test_a_state_is_replaced_not_written(decoder_package: Path, tokens: np.ndarray):
    model = mil.load(decoder_package)
    state = model.new_state()
    model.run("prefill", {"x": tokens[:, :PREFILL], "position": [0]}, state)
    snapshot = dict(state)
    copies = {name: value.copy() for name, value in snapshot.items()}
    step = {"x": tokens[:, -1:], "position": [PREFILL]}
    first = model.run("decode", step, state)["y"]
    assert all(np.array_equal(copies[name], snapshot[name]) for name in copies)
    assert not np.array_equal(state["k_cache"], snapshot["k_cache"])
    assert np.array_equal(first, model.run("decode", step, snapshot)["y"])


def test_float16_values_are_float16_values(decoder_package: Path, tokens: np.ndarray):
    model = mil.load(decoder_package, "float16")
    state = model.new_state()
    outputs = model.run("prefill", {"x": tokens[:, :PREFILL], "position": [0]}, state)
    for value in (*outputs.values(), *state.values()):
        assert value.dtype == np.float32
        assert np.array_equal(value, value.astype(np.float16))


def linear_int4(model: Any) -> Any:
    how = cto.coreml.OpLinearQuantizerConfig(
        dtype="int4", granularity="per_block", block_size=32, weight_threshold=0
    )
    return cto.coreml.linear_quantize_weights(model, cto.coreml.OptimizationConfig(global_config=how))


def palettes(model: Any) -> Any:
    how = cto.coreml.OpPalettizerConfig(  # uniform: k-means would need scikit-learn
        mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=16, weight_threshold=0
    )
    return cto.coreml.palettize_weights(model, cto.coreml.OptimizationConfig(global_config=how))


def pruned(model: Any) -> Any:
    how = cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    return cto.coreml.prune_weights(model, cto.coreml.OptimizationConfig(global_config=how))


COMPRESSIONS = {
    "constexpr_blockwise_shift_scale": linear_int4,
    "constexpr_lut_to_dense": palettes,
    "constexpr_sparse_to_dense": pruned,
}


@pytest.mark.parametrize("operation", COMPRESSIONS)
def test_compressed_weights(operation: str, converted: dict[str, Any], tokens: np.ndarray, tmp_path: Path):
    """Against the same package after coremltools itself decompressed it."""
    (tmp_path / "plain").mkdir()
    small = {name: COMPRESSIONS[operation](model) for name, model in converted.items()}
    plain = {name: cto.coreml.decompress_weights(model) for name, model in small.items()}
    compressed = packages.save_functions(tmp_path, small, "prefill")
    decompressed = packages.save_functions(tmp_path / "plain", plain, "prefill")
    assert operation in mil.load(compressed).operations()
    assert operation not in mil.load(decompressed).operations()
    for arithmetic, limit in (("float32", 2e-3), ("float16", 1e-6)):
        expected = by_package(decompressed, arithmetic, tokens)  # type: ignore[arg-type]
        actual = by_package(compressed, arithmetic, tokens)  # type: ignore[arg-type]
        assert max(map(difference, actual, expected)) < limit


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_vision_tower(activation: str, tmp_path: Path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                              image_size=24, patch_size=8, hidden_act=activation)  # fmt: skip

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIPVisionModel(config)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]  # type: ignore[no-any-return]

    tower = Tower().eval()
    pixels = torch.randn(1, 3, 24, 24).half().float()
    model = packages.convert(tower, [ct.TensorType("pixels", pixels.shape, dtype=np.float16)], (pixels,))
    model.save(str(tmp_path / "tower.mlpackage"))
    with torch.no_grad():
        expected = rounded(tower)(pixels)
    for arithmetic, limit in (("float32", FLOAT32), ("float16", FLOAT16)):
        tower_package = mil.load(tmp_path / "tower.mlpackage", arithmetic)  # type: ignore[arg-type]
        assert difference(tower_package.run(inputs={"pixels": pixels.numpy()})["y"], expected) < limit


def test_float32_packages_keep_float32_in_float16_arithmetic(tmp_path: Path):
    module = nn.Linear(8, 8).eval()
    x = torch.randn(2, 8)
    how = {"precision": ct.precision.FLOAT32}
    packages.convert(module, [ct.TensorType("x", x.shape)], (x,), **how).save(
        str(tmp_path / "linear.mlpackage")
    )
    model = mil.load(tmp_path / "linear.mlpackage", "float16")
    assert difference(model.run(inputs={"x": x.numpy()})["y"], module(x).detach()) < 1e-6


def test_flexible_shapes(tmp_path: Path):
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.reshape(1, -1, 2, 4).transpose(1, 2)
            return torch.cat([y, y.flip(-1)], -1).softmax(-1).reshape(1, 2, x.shape[1], 8) + x.shape[1]

    shape = (1, ct.RangeDim(1, 9, default=3), 8)
    model = packages.convert(Pooled().eval(), [ct.TensorType("x", shape)], (torch.randn(1, 3, 8),))
    model.save(str(tmp_path / "flexible.mlpackage"))
    loaded = mil.load(tmp_path / "flexible.mlpackage")
    assert loaded.functions["main"].inputs["x"].shape == (1, None, 8)
    for length in (1, 3, 7):
        x = torch.randn(1, length, 8)
        assert difference(loaded.run(inputs={"x": x.numpy()})["y"], Pooled()(x)) < FLOAT32
