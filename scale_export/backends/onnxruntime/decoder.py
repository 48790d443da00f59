"""Emitting the decoder graph: traced over placeholders, then given its real tensors lazily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from ...decoder import Cache, Gate, PortableDecoder
from ...quantize import QuantizedWeights
from ...records import DecoderSpec, Float32, Scope
from ...weights import DecoderWeights
from .kernels import GraphOptions, OnnxKernels
from .save import save_model
from .trace import attach_weights, forget_inner_shapes, set_default, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDefaults:
    """The scalars that a gated graph starts with: ``attn_scale [L, H]``, ``mlp_scale [L]``, float32."""

    scope: Scope
    attn_scale: Float32
    mlp_scale: Float32


class TracedDecoder(nn.Module):
    """The graph's signature: flat inputs in contract order, the weights last."""

    def __init__(
        self,
        spec: DecoderSpec,
        options: GraphOptions,
        weight_names: list[str],
        *,
        scope: Scope | None,
        last_logits_only: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.weight_names = weight_names
        self.options = options
        self.scope = scope
        self.last_logits_only = last_logits_only

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
        gate_inputs: list[Tensor],
        weights: list[Tensor],
    ) -> list[Tensor]:
        named = dict(zip(self.weight_names, weights, strict=True))
        kernels = OnnxKernels(self.spec, self.options, named)
        decoder = PortableDecoder(self.spec, kernels, last_logits_only=self.last_logits_only)
        gate_position, *scalars = gate_inputs
        gate = Gate(scope=self.scope, attn_scale=scalars[0], mlp_scale=scalars[1]) if self.scope else None
        caches: list[Cache] = [(past[2 * i], past[2 * i + 1]) for i in range(self.spec.num_layers)]
        logits, presents = decoder(inputs_embeds, attention_mask, position_ids, caches, gate, gate_position)
        return [logits.to(torch.float32), *(tensor for present in presents for tensor in present)]


def placeholders(spec: DecoderSpec, options: GraphOptions, context_length: int) -> dict[str, Tensor]:
    """Uninitialised tensors of every weight's shape in the graph; their pages are never touched."""
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, (out_features, in_features, has_bias) in spec.linears().items():
        if options.bits is None:
            shapes[name] = ((in_features, out_features), options.dtype)
        else:
            blocks = -(-in_features // options.block_size)
            shapes[f"{name}.codes"] = (
                (out_features, blocks, options.block_size * options.bits // 8),
                torch.uint8,
            )
            shapes[f"{name}.scales"] = ((out_features, blocks), options.dtype)
        if has_bias:
            shapes[f"{name}.bias"] = ((out_features,), options.dtype)
    for name in spec.norms():
        shapes[name] = ((spec.hidden_size,), options.dtype)
    for name in ("cos_cache", "sin_cache"):
        shapes[name] = ((context_length, spec.head_dim // 2), options.dtype)
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def tensor_values(weights: DecoderWeights, context_length: int) -> Callable[[str], NDArray[Any]]:
    """A function from a placeholder's name to its values (float32, or uint8 codes), read when called."""
    spec = weights.spec
    norms = set(spec.norms())
    angles = np.outer(np.arange(context_length, dtype=np.float32), np.asarray(spec.inv_freq, np.float32))

    def value(name: str) -> NDArray[Any]:
        owner, _, part = name.rpartition(".")
        if name in ("cos_cache", "sin_cache"):
            table = np.cos(angles) if name == "cos_cache" else np.sin(angles)
            return np.asarray(table * np.float32(spec.rotary_scale), np.float32)
        if name in norms:
            return weights.norm(name).numpy()
        if part == "bias":
            bias = weights.bias(owner)
            assert bias is not None
            return bias.numpy()
        matrix: NDArray[Any]
        if isinstance(weights, QuantizedWeights):
            block = weights.block(owner)
            matrix = block.codes if part == "codes" else block.scales
        else:
            matrix = weights.matrix(name).T.contiguous().numpy()
        return matrix

    return value


def emit_decoder(
    weights: DecoderWeights,
    path: Path,
    *,
    options: GraphOptions,
    context_length: int,
    gate: GateDefaults | None,
    last_logits_only: bool = True,
) -> None:
    """Write ``path`` (``decoder.onnx``) and its external data ``path.data``.

    Args:
        weights: ``QuantizedWeights`` where ``options`` name a quantized precision.
        gate: the scalars' defaults, or None where the weights hold them.
    """
    spec = weights.spec
    tensors = placeholders(spec, options, context_length)
    model = _trace(spec, options, tensors, gate, last_logits_only)
    attach_weights(model, tensors, tensor_values(weights, context_length))
    if gate:
        set_default(model, "attn_scale", gate.attn_scale)
        set_default(model, "mlp_scale", gate.mlp_scale)
    set_default(model, "gate_position", np.array([-1], np.int64))
    save_model(model, path)


def _trace(
    spec: DecoderSpec,
    options: GraphOptions,
    tensors: dict[str, Tensor],
    gate: GateDefaults | None,
    last_only: bool,
) -> ir.Model:
    batch, tokens, past_length = 2, 3, 5
    cache_shape = (batch, spec.num_kv_heads, past_length, spec.head_dim)
    names = ["inputs_embeds", "attention_mask", "position_ids"]
    cache_names = [f"{i}.{part}" for i in range(spec.num_layers) for part in ("key", "value")]
    gate_inputs = [torch.full((batch,), -1, dtype=torch.int64)]
    gate_names = ["gate_position"]
    if gate:
        gate_inputs += [torch.empty(spec.num_layers, spec.num_heads), torch.empty(spec.num_layers)]
        gate_names += ["attn_scale", "mlp_scale"]
    b, t, p, total = Dim("batch"), Dim("tokens"), Dim("past"), Dim("total")
    args = (
        torch.empty(batch, tokens, spec.hidden_size, dtype=options.dtype),
        torch.ones(batch, past_length + tokens, dtype=torch.int64),
        torch.zeros(batch, tokens, dtype=torch.int64),
        # One tensor each: the tracer takes a repeated tensor for one input.
        [torch.empty(cache_shape, dtype=options.dtype) for _ in cache_names],
        gate_inputs,
        list(tensors.values()),
    )
    shapes = (
        {0: b, 1: t},
        {0: b, 1: total},
        {0: b, 1: t},
        [{0: b, 2: p}] * len(cache_names),
        [{0: b}] + [None] * (len(gate_inputs) - 1),
        [None] * len(tensors),
    )
    scope = gate.scope if gate else None
    module = TracedDecoder(spec, options, list(tensors), scope=scope, last_logits_only=last_only)
    model = trace(
        module,
        args,
        input_names=[*names, *(f"past_key_values.{n}" for n in cache_names), *gate_names, *tensors],
        output_names=["logits", *(f"present.{n}" for n in cache_names)],
        dynamic_shapes=shapes,
    )
    _name_dimensions(model, spec, last_only)
    return model


def _name_dimensions(model: ir.Model, spec: DecoderSpec, last_only: bool) -> None:
    """Give inputs and outputs the contract's dimension names, and drop the tracer's from between."""
    cache = ("batch", spec.num_kv_heads, "past_length", spec.head_dim)
    shapes: dict[str, tuple[str | int, ...]] = {
        "inputs_embeds": ("batch", "tokens", spec.hidden_size),
        "attention_mask": ("batch", "total_length"),
        "position_ids": ("batch", "tokens"),
        "gate_position": ("gate_batch",),
        "logits": ("batch", 1 if last_only else "tokens", spec.vocab_size),
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = str(value.name)
        if name.startswith("past_key_values."):
            value.shape = ir.Shape(cache)
        elif name.startswith("present."):
            value.shape = ir.Shape(("batch", spec.num_kv_heads, "total_length", spec.head_dim))
        elif name in shapes:
            value.shape = ir.Shape(shapes[name])
    forget_inner_shapes(model)
