"""Emitting the decoder graph: traced over placeholders, then given its real tensors lazily."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from scale_export.core.records import Array, DecoderSpec, Float32, Rotary
from scale_export.core.words import Scope
from scale_export.device.onnxruntime.host import GATE, SCALARS
from scale_export.model.decoder import Cache, Gate, PortableDecoder
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights, StaticWeights

from .kernels import ZERO, GraphOptions, OnnxKernels, step_name, table_names, turns_apart
from .save import save_model
from .trace import attach_weights, forget_inner_shapes, trace, traced_once

HOST_SCOPE: Final[Scope] = "last"
"""Of a graph that is told g itself: whoever runs it knows the scope."""


class TracedDecoder(nn.Module):
    """The graph's signature: flat inputs in the order of ``docs/package.md``, the weights last."""

    def __init__(
        self,
        spec: DecoderSpec,
        options: GraphOptions,
        weight_names: list[str],
        *,
        gated: bool,
        last_logits_only: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.weight_names = weight_names
        self.options = options
        self.gated = gated
        self.last_logits_only = last_logits_only

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
        gate_inputs: list[Tensor],
        extras: list[Tensor],
        weights: list[Tensor],
    ) -> list[Tensor]:
        named = dict(zip(self.weight_names, weights, strict=True))
        kernels = OnnxKernels(self.spec, self.options, named)
        decoder = PortableDecoder(self.spec, kernels, last_logits_only=self.last_logits_only)
        positions, *scalars = gate_inputs
        gate = Gate(scope=HOST_SCOPE, attn_scale=scalars[0], mlp_scale=scalars[1]) if self.gated else None
        caches: list[Cache] = [(past[2 * i], past[2 * i + 1]) for i in range(self.spec.num_layers)]
        group = extras[0] if self.spec.grouped_attention else None
        deepstack = extras[1:] if self.spec.grouped_attention else extras
        logits, presents = decoder(
            inputs_embeds, attention_mask, position_ids, caches, gate, positions, group, deepstack
        )
        return [logits.to(torch.float32), *(tensor for present in presents for tensor in present)]


def placeholders(weights: DecoderWeights, options: GraphOptions, context_length: int) -> dict[str, Tensor]:
    """Uninitialised tensors of every weight's shape in the graph; their pages are never touched."""
    spec = weights.spec
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, (out_features, in_features, has_bias) in spec.linears().items():
        if options.static:
            shapes[f"{name}.codes"] = ((in_features, out_features), torch.int8)
            shapes[f"{name}.scales"] = ((out_features,), options.dtype)
            shapes[step_name(name)] = ((), options.dtype)
        elif options.bits is None:
            shapes[name] = ((in_features, out_features), options.dtype)
        else:
            blocks = -(-in_features // options.block_size)
            shapes[f"{name}.codes"] = (
                (out_features, blocks, options.block_size * _bits(weights, name, options.bits) // 8),
                torch.uint8,
            )
            shapes[f"{name}.scales"] = ((out_features, blocks), options.dtype)
        if has_bias:
            shapes[f"{name}.bias"] = ((out_features,), options.dtype)
    if options.static:
        shapes[ZERO] = ((), torch.int8)
    for name, width in spec.norms().items():
        shapes[name] = ((width,), options.dtype)
    for name in _tables(spec):
        shapes[name] = ((context_length, spec.head_dim // 2), options.dtype)
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def _bits(weights: DecoderWeights, name: str, default: int) -> int:
    return weights.bits_of(name) if isinstance(weights, QuantizedWeights) else default


def tensor_values(weights: DecoderWeights, context_length: int) -> Callable[[str], Array]:
    """A function from a placeholder's name to its values (float32, or integer codes), read when called."""
    spec = weights.spec
    norms, tables = spec.norms(), _tables(spec)

    def value(name: str) -> Array:
        owner, _, part = name.rpartition(".")
        if name in tables:
            rotary, function = tables[name]
            angles = np.outer(
                np.arange(context_length, dtype=np.float32), np.asarray(rotary.inv_freq, np.float32)
            )
            return np.asarray(function(angles) * np.float32(rotary.scale), np.float32)
        if name in norms:
            return weights.norm(name).numpy()
        if part == "bias":
            bias = weights.bias(owner)
            assert bias is not None
            return bias.numpy()
        matrix: Array
        if isinstance(weights, StaticWeights):
            matrix = static_value(weights, owner, part)
        elif isinstance(weights, QuantizedWeights):
            block = weights.block(owner)
            matrix = block.codes if part == "codes" else block.scales
        else:
            matrix = weights.matrix(name).T.contiguous().numpy()
        return matrix

    return value


def static_value(weights: StaticWeights, owner: str, part: str) -> Array:
    """A w8a8 graph's ``codes [in, out]``, ``scales [out]`` or ``input_scale []`` of a matrix, or its zero point."""
    if part == "input_scale":
        return np.asarray(weights.step(owner))
    if not owner:  # ZERO
        return np.zeros((), np.int8)
    block = weights.block(owner)
    return signed_codes(block.codes) if part == "codes" else block.scales[:, 0]


def signed_codes(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Whole rows of ``BlockMatrix``, ``[out, 1, in]``, as a graph of w8a8 holds them: ``[in, out]``."""
    return np.ascontiguousarray((codes[:, 0] ^ 0x80).view(np.int8).T)


def block_codes(signed: NDArray[np.int8]) -> NDArray[np.uint8]:
    """What ``signed_codes`` made, back again."""
    return np.bitwise_xor(np.ascontiguousarray(signed.T).view(np.uint8)[:, None], np.uint8(0x80))


def _tables(spec: DecoderSpec) -> dict[str, tuple[Rotary, Callable[[Float32], Float32]]]:
    """The rotary tables that a graph looks up by position; none where queries and keys are turned apart."""
    if turns_apart(spec):
        return {}
    return {
        name: (rotary, function)
        for index, rotary in enumerate(spec.rotaries)
        for name, function in zip(table_names(index), (np.cos, np.sin), strict=True)
    }


def extra_names(spec: DecoderSpec) -> list[str]:
    """The inputs that only some families have."""
    group = ["attention_group"] if spec.grouped_attention else []
    return group + [f"deepstack.{layer}" for layer in range(spec.deepstack_layers)]


def emit_decoder(
    weights: DecoderWeights,
    path: Path,
    *,
    options: GraphOptions,
    context_length: int,
    gated: bool,
    last_logits_only: bool = True,
) -> None:
    """Write ``path`` (``decoder.onnx``) and its external data ``path.data``.

    Args:
        weights: ``QuantizedWeights`` where ``options`` name a quantized precision.
        gated: whether the graph takes ``attn_scale`` and ``mlp_scale``, or its weights hold them.
    """
    spec = weights.spec
    tensors = placeholders(weights, options, context_length)
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
    model = traced_once(
        TracedDecoder,
        (spec, options, shapes, gated, last_logits_only),
        lambda: _trace(spec, options, tensors, gated, last_logits_only),
    )
    attach_weights(model, tensors, tensor_values(weights, context_length))
    save_model(model, path)


def _trace(
    spec: DecoderSpec,
    options: GraphOptions,
    tensors: dict[str, Tensor],
    gated: bool,
    last_only: bool,
) -> ir.Model:
    batch, tokens, past_length = 2, 3, 5
    cache_shape = (batch, spec.num_kv_heads, past_length, spec.head_dim)
    names = ["inputs_embeds", "attention_mask", "position_ids"]
    cache_names = [f"{i}.{part}" for i in range(spec.num_layers) for part in ("key", "value")]
    gate_inputs = [torch.zeros(batch, tokens)]
    gate_names = [GATE]
    if gated:
        gate_inputs += [torch.empty(spec.num_layers, spec.num_heads), torch.empty(spec.num_layers)]
        gate_names += SCALARS
    several = (spec.position_axes,) if spec.position_axes > 1 else ()
    group = [torch.full((batch, tokens), -1, dtype=torch.int64)] if spec.grouped_attention else []
    stacked = [
        torch.empty(batch, tokens, spec.hidden_size, dtype=options.dtype)
        for _ in range(spec.deepstack_layers)
    ]
    b, t, p, total = Dim("batch"), Dim("tokens"), Dim("past"), Dim("total")
    args = (
        torch.empty(batch, tokens, spec.hidden_size, dtype=options.dtype),
        torch.ones(batch, past_length + tokens, dtype=torch.int64),
        torch.zeros(*several, batch, tokens, dtype=torch.int64),
        # One tensor each: the tracer takes a repeated tensor for one input.
        [torch.empty(cache_shape, dtype=options.dtype) for _ in cache_names],
        gate_inputs,
        group + stacked,
        list(tensors.values()),
    )
    shapes = (
        {0: b, 1: t},
        {0: b, 1: total},
        {len(several): b, len(several) + 1: t},
        [{0: b, 2: p}] * len(cache_names),
        [{0: b, 1: t}] + [None] * (len(gate_inputs) - 1),
        [{0: b, 1: t}] * len(group + stacked),
        [None] * len(tensors),
    )
    module = TracedDecoder(spec, options, list(tensors), gated=gated, last_logits_only=last_only)
    model = trace(
        module,
        args,
        input_names=[
            *names,
            *(f"past_key_values.{n}" for n in cache_names),
            *gate_names,
            *extra_names(spec),
            *tensors,
        ],
        output_names=["logits", *(f"present.{n}" for n in cache_names)],
        dynamic_shapes=shapes,
    )
    if options.counts_positions and not turns_apart(spec):
        model.graph.inputs.remove(next(v for v in model.graph.inputs if v.name == "position_ids"))
    _name_dimensions(model, spec, last_only)
    return model


def _name_dimensions(model: ir.Model, spec: DecoderSpec, last_only: bool) -> None:
    """Give inputs and outputs the dimension names of ``docs/package.md``, and drop the tracer's from between."""
    cache = ("batch", spec.num_kv_heads, "past_length", spec.head_dim)
    several = (spec.position_axes,) if spec.position_axes > 1 else ()
    shapes: dict[str, tuple[str | int, ...]] = {
        "inputs_embeds": ("batch", "tokens", spec.hidden_size),
        "attention_mask": ("batch", "total_length"),
        "position_ids": (*several, "batch", "tokens"),
        "attention_group": ("batch", "tokens"),
        GATE: ("batch", "tokens"),
        "logits": ("batch", 1 if last_only else "tokens", spec.vocab_size),
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        name = str(value.name)
        if name.startswith("past_key_values."):
            value.shape = ir.Shape(cache)
        elif name.startswith("present."):
            value.shape = ir.Shape(("batch", spec.num_kv_heads, "total_length", spec.head_dim))
        elif name.startswith("deepstack."):
            value.shape = ir.Shape(shapes["inputs_embeds"])
        elif name in shapes:
            value.shape = ir.Shape(shapes[name])
    forget_inner_shapes(model)
