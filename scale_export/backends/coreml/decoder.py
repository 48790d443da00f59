"""Emitting the decoder: functions ``prefill`` and ``decode`` over shared weights and one KV cache.

Inputs of a function, those that it needs: ``inputs_embeds`` (``hidden_states`` in a later part of a split
decoder) ``[1, T, D]``; ``cos``, ``sin`` ``[T, hd]``, and ``cos_1``, ``sin_1`` of a second rotary embedding;
``position`` int32 ``[1]``, the cache slot of the first token; ``valid_length`` int32 ``[1]``, how many of a padded
chunk's T positions are tokens; of ``prefill`` alone ``attention_group`` int32 ``[T]`` and ``deepstack``
``[layers, 1, T, D]``, see ``PortableDecoder.forward``; ``attn_scale``
``[layers, H]`` and ``mlp_scale`` ``[layers]`` of a gated decoder. A chunk that another one follows passes
scalars of one, since only a prompt's last token is scaled under scope ``last``.
States: ``k_cache``, ``v_cache`` ``[layers, K, C, hd]``. Output: ``logits`` ``[1, 1, V]`` after the last token,
or ``next_hidden_states`` ``[1, T, D]`` of a part that another one follows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scale_export.core.errors import UserError
from scale_export.core.records import DecoderSpec
from scale_export.core.words import Precision, Scope
from scale_export.device.coreml.host import table_names
from scale_export.model.blocks import Bits
from scale_export.model.decoder import Cache, Gate, PortableDecoder
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights

from .convert import MatrixSource, Stored, convert_function, save_functions
from .kernels import CoreMLKernels, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a decoder is stored and what it computes in."""

    precision: Precision
    block_size: int

    @property
    def half(self) -> bool:
        """Whether activations, scales and norms are float16; float32 serves measurement only."""
        return self.precision != "float32"

    @property
    def bytes_per_weight(self) -> float:
        """Of a matrix without bits of its own, block scales included."""
        per_block = 2 / self.block_size
        return {"float32": 4.0, "float16": 2.0, "int8": 1 + per_block, "int4": 0.5 + per_block}[
            self.precision
        ]

    def bytes_of(self, bits: Bits) -> float:
        """Per weight of a matrix with bits of its own, block scales included."""
        return bits / 8 + 2 / self.block_size


RESIDUAL_SCALE = 2.0**-6
"""What the residual stream of a float16 decoder with sandwich norms is multiplied by.

Gemma 3's checkpoints are reported to pass float16's 65,504 there (Hugging Face transformers, issue 36822). Nothing
but norms reads that stream, and they take any factor out again: it comes in by the embeddings and by the norms whose
output is added (the same, pull request 37226).
"""


def residual_scale(spec: DecoderSpec, *, half: bool) -> float:
    """``RESIDUAL_SCALE`` where it applies, else 1."""
    return RESIDUAL_SCALE if half and spec.sandwich_norms else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One entry point of a decoder part: T tokens at once, and how its scalars enter."""

    tokens: int
    gate: Scope | None


class TracedDecoder(nn.Module):
    """One function of one part: flat inputs in the order of ``names``, the cache as buffers."""

    def __init__(
        self,
        spec: DecoderSpec,
        layers: range,
        function: Function,
        norms: Mapping[str, Tensor],
        *,
        capacity: int,
        residual_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.residual_scale = residual_scale
        self.layers = layers
        self.function = function
        self.norms = norms
        self.is_last = layers.stop == spec.num_layers
        shape = (len(layers), spec.num_kv_heads, capacity, spec.head_dim)
        self.k_cache: Tensor
        self.v_cache: Tensor
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def example(self) -> dict[str, Tensor]:
        """Inputs by name, of the function's shapes."""
        tokens, spec = self.function.tokens, self.spec
        first = "hidden_states" if self.layers.start else "inputs_embeds"
        tables = [name for index in range(len(spec.rotaries)) for name in table_names(index)]
        inputs = {
            first: torch.zeros(1, tokens, spec.hidden_size),
            **{name: torch.zeros(tokens, spec.head_dim) for name in tables},
            "position": torch.zeros(1, dtype=torch.int32),
        }
        if tokens > 1 and (self.is_last or self.function.gate == "last"):
            inputs["valid_length"] = torch.ones(1, dtype=torch.int32)
        if tokens > 1 and spec.grouped_attention:
            inputs["attention_group"] = torch.zeros(tokens, dtype=torch.int32)
        stacked = range(self.layers.start, min(self.layers.stop, spec.deepstack_layers))
        if tokens > 1 and stacked:
            inputs["deepstack"] = torch.zeros(len(stacked), 1, tokens, spec.hidden_size)
        if self.function.gate:
            inputs["attn_scale"] = torch.ones(len(self.layers), spec.num_heads)
            inputs["mlp_scale"] = torch.ones(len(self.layers))
        return inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.example(), inputs, strict=True))
        rotaries = [table_names(index) for index in range(len(self.spec.rotaries))]
        placement = Placement(
            rotaries=tuple((named[cos], named[sin]) for cos, sin in rotaries),
            position=named["position"],
            attention_group=named.get("attention_group"),
        )
        kernels = CoreMLKernels(
            self.spec,
            placement,
            self.norms,
            first_layer=self.layers.start,
            residual_scale=self.residual_scale,
        )
        several = self.function.tokens > 1
        decoder = PortableDecoder(self.spec, kernels, layers=self.layers, last_logits_only=several)
        last = named["valid_length"] - 1 if "valid_length" in named else torch.zeros(1, dtype=torch.int32)
        gate = None
        if self.function.gate:
            gate = Gate(
                scope=self.function.gate, attn_scale=named["attn_scale"], mlp_scale=named["mlp_scale"]
            )
        cache: Cache = (self.k_cache, self.v_cache)
        caches, deepstack = [cache] * len(self.layers), named.get("deepstack")
        added = () if deepstack is None else torch.split(deepstack, 1)
        output: Tensor = decoder(
            inputs[0], None, None, caches, gate, last, deepstack=[layer[0] for layer in added]
        )[0]
        return output


def matrix_source(weights: DecoderWeights, storage: Storage) -> MatrixSource:
    """The decoder's matrices as a program stores them; each is made once."""
    dtype = np.float16 if storage.half else np.float32

    @functools.cache
    def stored(name: str) -> Stored:
        bias = weights.bias(name)
        bias_values = None if bias is None else bias.numpy().astype(dtype)
        if not isinstance(weights, QuantizedWeights):
            return Stored(data=weights.matrix(name).numpy().astype(dtype), bias=bias_values)
        block = weights.block(name)
        codes = (block.integers().astype(np.int16) - 2 ** (block.bits - 1)).astype(np.int8)
        return Stored(data=codes, scales=block.scales.astype(dtype), bits=block.bits, bias=bias_values)

    return stored


def split_layers(
    spec: DecoderSpec, storage: Storage, max_bytes: int | None, other_bits: Mapping[str, Bits] | None = None
) -> list[range]:
    """The layers of each part, so that no part's matrices pass ``max_bytes``; as even as layers allow.

    ``other_bits`` are those of matrices that have not the precision's.

    Raises:
        UserError: one layer, or the last one with the head, is larger.
    """
    if max_bytes is None:
        return [range(spec.num_layers)]
    own, layers = other_bits or {}, [0.0] * spec.num_layers
    for name, (out, width, _) in spec.linears().items():
        per_weight = storage.bytes_of(own[name]) if name in own else storage.bytes_per_weight
        layers[-1 if name == "lm_head" else int(name.split(".")[1])] += out * width * per_weight
    if max(layers) > max_bytes:
        raise UserError(
            f"one layer and the head take {int(max(layers)):,} bytes at {storage.precision}, and the target "
            f"allows {max_bytes:,} in one part of a decoder: choose a smaller --precision or another target"
        )
    parts = int(-(-sum(layers) // max_bytes))
    while True:
        bounds = [round(i * spec.num_layers / parts) for i in range(parts + 1)]
        ranges = [range(a, b) for a, b in itertools.pairwise(bounds)]
        heaviest = max(sum(layers[r.start : r.stop]) for r in ranges)
        if heaviest <= max_bytes:
            return ranges
        parts += 1


def emit_part(
    folded: FoldedDecoder,
    layers: range,
    path: Path,
    *,
    storage: Storage,
    capacity: int,
    prefill_tokens: int,
) -> None:
    """Write one part of a decoder as an ``.mlpackage``.

    Gated: both functions take the scalars. Folded into weights: neither does. Two phases: ``prefill`` holds
    base weights for the prefix, ``decode`` the folded ones for the last prompt token and what is generated.

    Args:
        folded: with ``QuantizedWeights`` where ``storage`` names a quantized precision.
        capacity: slots of the KV cache, a multiple of ``prefill_tokens``.
    """
    spec, scope = folded.weights.spec, folded.coefficients.scope
    base = matrix_source(folded.weights, storage)
    scaled = base if folded.scaled is None else _with_folded(base, folded, storage)
    functions = {
        "prefill": (Function(tokens=prefill_tokens, gate=scope if folded.gate else None), base),
        "decode": (Function(tokens=1, gate="all" if folded.gate else None), scaled),
    }
    scaled_weights = folded.weights if folded.scaled is None else folded.scaled
    weights = {"prefill": folded.weights, "decode": scaled_weights}
    programs = {}
    for name, (function, matrices) in functions.items():
        scale = residual_scale(spec, half=storage.half)
        norms = {
            norm: weights[name].norm(norm) * (scale if norm.endswith("_output_norm") else 1.0)
            for norm in _norms(spec, layers)
        }
        module = TracedDecoder(spec, layers, function, norms, capacity=capacity, residual_scale=scale).eval()
        programs[name] = convert_function(
            module,
            module.example(),
            outputs=["logits" if module.is_last else "next_hidden_states"],
            states=dict(module.named_buffers()),
            half=storage.half,
            matrices=matrices,
        )
    save_functions(programs, path)


def _with_folded(base: MatrixSource, folded: FoldedDecoder, storage: Storage) -> MatrixSource:
    """The base's own arrays but for the matrices that folding touches."""
    assert folded.scaled is not None
    touched = matrix_source(folded.scaled, storage)
    return lambda name: touched(name) if name in folded.factors else base(name)


def _norms(spec: DecoderSpec, layers: range) -> list[str]:
    own = [name for name in spec.norms() if name != "norm" and int(name.split(".")[1]) in layers]
    return [*own, "norm"] if layers.stop == spec.num_layers else own
