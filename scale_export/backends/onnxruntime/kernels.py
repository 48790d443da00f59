"""The decoder's arithmetic as ONNX Runtime operators, for tracing.

Weights are graph inputs while the decoder is traced and become initializers afterwards, so that tracing
never reads, folds or merges them. Fused operators: GroupQueryAttention (with rotary),
SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization, MatMulNBits; see ONNX Runtime's ContribOperators.md.
Products of w8a8 are ONNX's own QuantizeLinear, DequantizeLinear and MatMul.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out

from scale_export.core.records import DecoderSpec
from scale_export.core.words import FloatType, Precision
from scale_export.model.arithmetic import rotary_tables
from scale_export.model.decoder import Cache
from scale_export.quantize import group_of

from .trace import OPSET

BITS: dict[Precision, int] = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """How a decoder graph computes.

    ``accuracy_level`` 0 multiplies by dequantized float weights; 4 rounds activations to int8 per block.
    ``activations`` is what block scales, norms, biases and the KV cache are kept in, too. Where attention turns by
    position, ``counts_positions`` lets it count them: a row's new token stands behind what the row holds.
    """

    precision: Precision
    block_size: int
    accuracy_level: int
    activations: FloatType
    counts_positions: bool = False

    @property
    def bits(self) -> int | None:
        """Bits of a block-quantized weight, where its matrix has no others; None for floats and w8a8."""
        return BITS.get(self.precision)

    @property
    def static(self) -> bool:
        """Whether products are of int8 on both sides."""
        return self.precision == "w8a8"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and of the KV cache."""
        return torch.float16 if self.activations == "float16" else torch.float32


HIDDEN = {torch.float32: -1e9, torch.float16: -6e4}
"""What is added to the score of a key that is not to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """What GroupQueryAttention takes beside queries, keys and values."""

    past_lengths: Tensor  # seqlens_k: tokens per row after this step, minus one; int32 [B]
    total_length: Tensor  # P + T; int32 scalar
    position_ids: Tensor
    turned: tuple[
        tuple[Tensor, Tensor], ...
    ]  # where queries and keys are turned apart: cos and sin [B·T, hd / 2] per rotary
    biases: Mapping[int | None, Tensor]  # window → [B, 1, T, P + T], where tokens see their group


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
            y = self._static_product(name, x) if self.options.static else torch.matmul(x, self.weights[name])
            return y if bias is None else y + bias
        codes = self.weights[f"{name}.codes"]
        inputs = [x, codes, self.weights[f"{name}.scales"], None, None, bias]
        return symbolic(
            "com.microsoft::MatMulNBits",
            inputs if has_bias else inputs[:3],
            {
                "K": in_features,
                "N": out_features,
                "bits": codes.shape[-1] * 8 // self.options.block_size,
                "block_size": self.options.block_size,
                "accuracy_level": self.options.accuracy_level,
            },
            dtype=x.dtype,
            shape=(*x.shape[:-1], out_features),
            version=1,
        )

    def _static_product(self, name: str, x: Tensor) -> Tensor:
        """Both sides through int8, symmetric: the weights by output channel, the inputs by one scale."""
        codes, step = self.weights[f"{name}.codes"], self.weights[step_name(name)]
        rounded = symbolic(
            "::QuantizeLinear",
            [x, step, self.weights[ZERO]],
            dtype=torch.int8,
            shape=x.shape,
            version=OPSET,
        )
        sides = [
            symbolic(
                "::DequantizeLinear", inputs, {"axis": 1}, dtype=x.dtype, shape=inputs[0].shape, version=OPSET
            )
            for inputs in ([rounded, step, self.weights[ZERO]], [codes, self.weights[f"{name}.scales"]])
        ]
        return torch.matmul(*sides)

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

    def begin(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        attention_group: Tensor | None,
    ) -> AttentionInputs:
        assert attention_mask is not None and position_ids is not None  # graphs have both as inputs
        lengths = attention_mask.sum(dim=1) - 1
        total = torch.ones((), dtype=torch.int32) * attention_mask.shape[1]
        biases = (
            {} if attention_group is None else self._biases(inputs_embeds, attention_mask, attention_group)
        )
        return AttentionInputs(
            past_lengths=lengths.to(torch.int32),
            total_length=total.to(torch.int32),
            position_ids=position_ids,
            turned=self._turned(position_ids, inputs_embeds.dtype) if turns_apart(self.spec) else (),
            biases=biases,
        )

    def _turned(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], ...]:
        """Rows for ``RotaryEmbedding``, which looks them up by token instead of by position."""
        half = self.spec.head_dim // 2
        tables = rotary_tables(self.spec, position_ids, dtype)
        return tuple(
            (cos[..., :half].reshape(-1, half), sin[..., :half].reshape(-1, half)) for cos, sin in tables
        )

    def _biases(
        self, inputs_embeds: Tensor, attention_mask: Tensor, attention_group: Tensor
    ) -> Mapping[int | None, Tensor]:
        """Rows hold their tokens without gaps, so a row's new ones follow its own, not the longest row's."""
        tokens, total = inputs_embeds.shape[1], attention_mask.shape[1]
        slots = torch.arange(total)[None]
        held = (attention_mask.sum(dim=1, keepdim=True) - tokens).clamp(min=0)  # of a padded prompt: none
        new = (torch.arange(tokens)[None] + held)[:, :, None]
        among_new = slots - held
        keys = torch.gather(attention_group, 1, among_new.clamp(min=0, max=tokens - 1))
        keys = torch.where((among_new >= 0) & (among_new < tokens), keys, -1)[:, None]
        group = attention_group[:, :, None]
        seen = ((slots <= new) | ((group == keys) & (group >= 0))) & (attention_mask[:, None] > 0)
        hidden, dtype = HIDDEN[inputs_embeds.dtype], inputs_embeds.dtype
        biases: dict[int | None, Tensor] = {}
        for window in set(self.spec.sliding_windows):
            near = seen if window is None else seen & (new - slots < window)
            biases[window] = torch.where(near, 0.0, hidden).to(dtype)[:, None]
        return biases

    def attention(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, past: Cache, shared: AttentionInputs
    ) -> tuple[Tensor, Cache]:
        spec, window, rotary = self.spec, self.spec.sliding_windows[layer], self.spec.layer_rotaries[layer]
        if shared.turned:
            q, k = (self._turn(x, shared.turned[rotary]) for x in (q, k))
            placed: list[Tensor | None] = [None, None, None]
        else:
            tables = (self.weights[name] for name in table_names(rotary))
            placed = [*tables, *(() if self.options.counts_positions else (shared.position_ids,))]
        bias = shared.biases.get(window)
        assert bias is None or len(placed) == 3, "the operator's inputs go by place"
        grown = (past[0].shape[0], spec.num_kv_heads, past[0].shape[2] + q.shape[1], spec.head_dim)
        z, keys, values = symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [
                *(q, k, v, *past),
                *(shared.past_lengths, shared.total_length),
                *placed,
                *(() if bias is None else (bias,)),
            ],
            {
                "num_heads": spec.num_heads,
                "kv_num_heads": spec.num_kv_heads,
                "scale": spec.attention_scale or spec.head_dim**-0.5,
                "do_rotary": int(not shared.turned),
                "rotary_interleaved": 0,
                "causal": int(bias is None),
                "local_window_size": -1 if window is None or bias is not None else window,
            },
            dtypes=(q.dtype, q.dtype, q.dtype),
            shapes=(q.shape, grown, grown),
            version=1,
        )
        return z, (keys, values)

    def _turn(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        batch, tokens, width = x.shape
        rows = torch.arange(batch * tokens).reshape(batch, tokens)
        return symbolic(
            "com.microsoft::RotaryEmbedding",
            [x, rows, *tables],
            {"num_heads": width // self.spec.head_dim, "interleaved": 0},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )


ZERO = "zero_point"
"""The weight that holds the zero point of every rounded input: 0, int8, for parsers that want one."""


def step_name(matrix: str) -> str:
    """The weight that holds the scale of a matrix's rounded inputs; matrices that share inputs share it."""
    return f"{group_of(matrix)[0]}.input_scale"


HEAD_DIM = 8
"""What GroupQueryAttention wants head_dim to be a multiple of."""

TURNED_HEAD_DIM = 16
"""The same where it turns queries and keys itself."""


def turns_apart(spec: DecoderSpec) -> bool:
    """Whether RotaryEmbedding turns queries and keys: at positions of several axes, and where attention can't."""
    return spec.position_axes > 1 or spec.head_dim % TURNED_HEAD_DIM != 0


def table_names(rotary: int) -> tuple[str, str]:
    """The weights that hold the cosines and sines ``[context, hd / 2]`` of a rotary embedding."""
    return f"cos_cache.{rotary}", f"sin_cache.{rotary}"
