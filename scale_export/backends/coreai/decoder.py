"""The decoder asset: the portable decoder over two states, in the signature of Apple's stock engines.

Rules, which ``CoreAISequentialVLMEngine`` of Apple's coreai-models sets:

1. Two inputs, ``inputs_embeds [1, T, D]`` and ``position_ids [1, S]`` int32 of all S tokens so far, two states
   ``k_cache`` and ``v_cache [L, 1, K, C, hd]``, one output ``logits [1, T, V]``. So the scalars are constants.
2. The host keeps the states and may grow C. Slots from S on hold nothing.
3. T may be anything from 1: one function serves prefill and decode.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from scale_export.core.records import DecoderSpec
from scale_export.model.arithmetic import TorchKernels, TorchShared, rotary_tables
from scale_export.model.decoder import Gate, PortableDecoder
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights

from .program import PackedMatrix, check_storage, write_asset

STATES = ("k_cache", "v_cache")
STORED = {torch.float32: "Float32", torch.float16: "Float16"}


class CoreAIKernels(TorchKernels):
    """Plain PyTorch arithmetic for one row of tokens that stand without gaps, on packed matrices if given."""

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.spec = weights.spec
        self.tensors = {}
        self.packed = nn.ModuleDict()
        for name, (_, _, has_bias) in self.spec.linears().items():
            if isinstance(weights, QuantizedWeights):
                self.packed[_key(name)] = PackedMatrix(weights.block(name), dtype)
            else:
                self.tensors[name] = weights.matrix(name).to(dtype)
            if has_bias:
                bias = weights.bias(name)
                assert bias is not None
                self.tensors[f"{name}.bias"] = bias.to(dtype)
        for name in self.spec.norms():
            self.tensors[name] = weights.norm(name).to(dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        if _key(name) not in self.packed:
            return super().linear(name, x)
        return F.linear(x, self.packed[_key(name)](), self.tensors.get(f"{name}.bias"))

    def begin(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        attention_group: Tensor | None,
    ) -> TorchShared:
        assert position_ids is not None  # graphs have them as an input
        total = position_ids.shape[1]
        past = total - inputs_embeds.shape[1]
        slots = torch.arange(total)
        distance = slots[past:, None] - slots
        tables = rotary_tables(self.spec, position_ids[:, past:], inputs_embeds.dtype)
        return TorchShared(rotaries=tables, visible=distance >= 0, distance=distance)


def _key(name: str) -> str:
    return name.replace(".", "_")


class StatefulDecoder(nn.Module):
    """The asset's signature (rule 1); writes the new keys and values of all layers to the states at once."""

    scalars: Tensor  # [L, H + 1] float32: of the heads, then of the MLP

    def __init__(self, folded: FoldedDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = PortableDecoder(folded.weights.spec, CoreAIKernels(folded.weights, dtype))
        self.scope = folded.coefficients.scope if folded.gate else None
        attn, mlp = (torch.from_numpy(part) for part in folded.dense())
        # One table, not one per layer: the converter keeps it whole.
        self.register_buffer("scalars", torch.cat((attn, mlp[:, None]), dim=1))

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        """Logits ``[1, T, V]`` in the embeddings' dtype."""
        assert position_ids is not None  # graphs have them as an input
        total = position_ids.shape[1]
        past = total - inputs_embeds.shape[1]
        torch._check(past >= 0)
        old = [(k[:, :, :past], v[:, :, :past]) for k, v in zip(k_cache, v_cache, strict=True)]
        last = torch.full((1,), -1, dtype=torch.int64)
        logits: Tensor
        logits, grown = self.decoder(inputs_embeds, None, position_ids, old, self._gate(), last)
        k_cache[:, :, :, past:total] = torch.stack([k[:, :, past:] for k, _ in grown])
        v_cache[:, :, :, past:total] = torch.stack([v[:, :, past:] for _, v in grown])
        return logits

    def _gate(self) -> Gate | None:
        if self.scope is None:
            return None
        return Gate(scope=self.scope, attn_scale=self.scalars[:, :-1], mlp_scale=self.scalars[:, -1])


def cache_shape(spec: DecoderSpec, slots: int) -> tuple[int, ...]:
    """Of each state: ``[L, 1, K, slots, hd]``."""
    return (spec.num_layers, 1, spec.num_kv_heads, slots, spec.head_dim)


def emit_decoder(folded: FoldedDecoder, path: Path, dtype: torch.dtype) -> None:
    """Write the decoder of one set of weights, packed where they are ``QuantizedWeights``.

    Args:
        dtype: of activations, states and float weights; float32 or float16.
    """
    spec, weights = folded.weights.spec, folded.weights
    tokens, total, slots = 3, 8, 16
    inputs = {
        "inputs_embeds": torch.zeros(1, tokens, spec.hidden_size, dtype=dtype),
        "position_ids": torch.arange(total, dtype=torch.int32).unsqueeze(0),
        **{name: torch.zeros(cache_shape(spec, slots), dtype=dtype) for name in STATES},
    }
    dynamic = {
        "inputs_embeds": {1: Dim.DYNAMIC},
        "position_ids": {1: Dim.DYNAMIC},
        **{name: {3: Dim.DYNAMIC} for name in STATES},
    }
    module = StatefulDecoder(folded, dtype).eval()
    asset = write_asset(module, path, inputs=inputs, dynamic=dynamic, outputs=["logits"], states=STATES)
    if isinstance(weights, QuantizedWeights):
        matrices = spec.linears().values()
        values = sum(rows * columns for rows, columns, _ in matrices)
        check_storage(asset, f"Int{weights.bits}", values=values, packed=len(matrices))
    else:
        check_storage(asset, STORED[dtype])
