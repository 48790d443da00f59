"""The decoder's arithmetic as ONNX Runtime operators, for tracing.

Weights are graph inputs while the decoder is traced and become initializers afterwards, so that tracing
never reads, folds or merges them. Fused operators: GroupQueryAttention (with rotary),
SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization, MatMulNBits; see ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from ...decoder import Cache
from ...records import DecoderSpec, Precision

BITS: dict[Precision, int] = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """How a decoder graph computes.

    ``accuracy_level`` 0 multiplies by dequantized float weights; 4 rounds activations to int8 per block.
    """

    precision: Precision
    block_size: int
    accuracy_level: int

    @property
    def bits(self) -> int | None:
        """Bits of a quantized weight, or None where weights are floats."""
        return BITS.get(self.precision)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and of the KV cache."""
        return torch.float16 if self.precision == "float16" else torch.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """What GroupQueryAttention takes beside queries, keys and values."""

    past_lengths: Tensor  # seqlens_k: tokens per row after this step, minus one; int32 [B]
    total_length: Tensor  # P + T; int32 scalar
    position_ids: Tensor


class OnnxKernels(nn.Module):
    """Symbolic operators over ``weights``: name → placeholder of the shape that the graph will hold."""

    def __init__(self, spec: DecoderSpec, options: GraphOptions, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.spec = spec
        self.options = options
        self.weights = weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        out_features, in_features, has_bias = self.spec.linears()[name]
        bias = self.weights[f"{name}.bias"] if has_bias else None
        if self.options.bits is None:
            y = torch.matmul(x, self.weights[name])
            return y if bias is None else y + bias
        inputs = [x, self.weights[f"{name}.codes"], self.weights[f"{name}.scales"], None, None, bias]
        return symbolic(
            "com.microsoft::MatMulNBits",
            inputs if has_bias else inputs[:3],
            {
                "K": in_features,
                "N": out_features,
                "bits": self.options.bits,
                "block_size": self.options.block_size,
                "accuracy_level": self.options.accuracy_level,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], out_features),
            version=1,
        )

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return symbolic(
            "::SimplifiedLayerNormalization",
            [x, self.weights[name]],
            {"axis": -1, "epsilon": self.spec.rms_norm_eps, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )

    def add_rms_norm(self, name: str, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        # The operator's second and third outputs are statistics that inference leaves out.
        outputs = symbolic_multi_out(
            "com.microsoft::SkipSimplifiedLayerNormalization",
            [x, residual, self.weights[name]],
            {"epsilon": self.spec.rms_norm_eps},
            dtypes=(x.dtype, torch.float32, torch.float32, x.dtype),
            shapes=(x.shape, (1,), (1,), x.shape),
            version=1,
        )
        return outputs[0], outputs[3]

    def begin(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor) -> AttentionInputs:
        lengths = attention_mask.sum(dim=1) - 1
        total = torch.ones((), dtype=torch.int32) * attention_mask.shape[1]
        return AttentionInputs(
            past_lengths=lengths.to(torch.int32),
            total_length=total.to(torch.int32),
            position_ids=position_ids,
        )

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: AttentionInputs
    ) -> tuple[Tensor, Cache]:
        spec, window = self.spec, self.spec.sliding_windows[layer]
        grown = (past[0].shape[0], spec.num_kv_heads, past[0].shape[2] + q.shape[1], spec.head_dim)
        z, keys, values = symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [
                *(q, k, v, *past),
                *(shared.past_lengths, shared.total_length),
                *(self.weights["cos_cache"], self.weights["sin_cache"], shared.position_ids),
            ],
            {
                "num_heads": spec.num_heads,
                "kv_num_heads": spec.num_kv_heads,
                "scale": spec.head_dim**-0.5,
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "local_window_size": -1 if window is None else window,
            },
            dtypes=(q.dtype, q.dtype, q.dtype),
            shapes=(q.shape, grown, grown),
            version=1,
        )
        return z, (keys, values)
