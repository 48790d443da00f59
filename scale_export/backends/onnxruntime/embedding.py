"""Emitting the embedding graph: token embeddings with image features at the image tokens' places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx.ops import symbolic

from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights

from .kernels import GraphOptions
from .save import save_model
from .trace import attach_weights, forget_inner_shapes, trace, traced_once


class TracedEmbedding(nn.Module):
    """``input_ids [B, T]``, ``image_features [image tokens, D]`` → ``inputs_embeds [B, T, D]``."""

    def __init__(self, options: GraphOptions, hidden_size: int, image_token_id: int) -> None:
        super().__init__()
        self.options = options
        self.hidden_size = hidden_size
        self.image_token_id = image_token_id

    def forward(self, input_ids: Tensor, image_features: Tensor, table: list[Tensor]) -> Tensor:
        dtype = self.options.dtype
        words = self._gather(input_ids, table)
        is_image = input_ids == self.image_token_id
        # Row 0 stands for "no image", so that a prompt without pictures gathers from something.
        rows = torch.cat((torch.zeros(1, self.hidden_size), image_features)).to(dtype)
        order = torch.cumsum(is_image.reshape(-1).to(torch.int64), dim=0).reshape(input_ids.shape)
        # An image token beyond the pictures (one that was generated) keeps its word embedding.
        pictured = is_image & (order <= image_features.shape[0])
        return torch.where(pictured.unsqueeze(-1), rows[order * pictured], words)

    def _gather(self, input_ids: Tensor, table: list[Tensor]) -> Tensor:
        if self.options.bits is None:
            return torch.embedding(table[0], input_ids)
        return symbolic(
            "com.microsoft::GatherBlockQuantized",
            [table[0], input_ids, table[1]],
            {
                "bits": table[0].shape[-1] * 8 // self.hidden_size,
                "block_size": self.options.block_size,
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            dtype=table[1].dtype,
            shape=(*input_ids.shape, self.hidden_size),
            version=1,
        )


def emit_embedding(
    weights: DecoderWeights, path: Path, *, options: GraphOptions, image_token_id: int
) -> None:
    """Write ``embedding.onnx``; the table is block-quantized where ``options`` name a quantized precision."""
    spec = weights.spec
    table, values = _table(weights, options)
    batch, tokens, images = Dim("batch"), Dim("tokens"), Dim("image_tokens")
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in table.items())
    model = traced_once(
        TracedEmbedding,
        (options, spec.hidden_size, image_token_id, shapes),
        lambda: trace(
            TracedEmbedding(options, spec.hidden_size, image_token_id),
            (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(5, spec.hidden_size), list(table.values())),
            input_names=["input_ids", "image_features", *table],
            output_names=["inputs_embeds"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: images}, [None] * len(table)),
        ),
    )
    attach_weights(model, table, values)
    forget_inner_shapes(model)
    model.graph.outputs[0].shape = ir.Shape(["batch", "tokens", spec.hidden_size])
    save_model(model, path)


def _table(
    weights: DecoderWeights, options: GraphOptions
) -> tuple[dict[str, Tensor], Callable[[str], NDArray[np.generic]]]:
    """The table's placeholders and a function to their values."""
    spec = weights.spec
    shape = (spec.vocab_size, spec.hidden_size)
    if not isinstance(weights, QuantizedWeights) or options.bits is None:
        return {
            "embed_tokens": torch.empty(shape, dtype=options.dtype)
        }, lambda _: weights.embedding().numpy()
    blocks = spec.hidden_size // options.block_size
    placeholders = {
        "embed_tokens.codes": torch.empty(
            spec.vocab_size, spec.hidden_size * weights.bits_of("embedding") // 8, dtype=torch.uint8
        ),
        "embed_tokens.scales": torch.empty(spec.vocab_size, blocks, dtype=options.dtype),
    }

    def value(name: str) -> NDArray[np.generic]:
        packed = weights.block("embedding")
        return packed.codes.reshape(spec.vocab_size, -1) if name.endswith("codes") else packed.scales

    return placeholders, value
