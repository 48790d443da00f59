"""The two assets in front of the decoder: token embeddings, and the vision tower with its projector."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from scale_export.families._towers.tower import VisionTower
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import QuantizedWeights

from .decoder import STORED
from .program import PackedMatrix, check_storage, write_asset


class Embedding(nn.Module):
    """``input_ids [1, T]`` int32 → ``embeddings [1, T, D]``."""

    table: Tensor

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("table", weights.embedding().to(dtype))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


class PackedEmbedding(nn.Module):
    """The same from integer codes, of which only the asked rows are unpacked.

    Core AI gathers no 4-bit integers without unpacking the whole table, so codes are stored in 8 bits.
    """

    def __init__(self, weights: QuantizedWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self.block_size = weights.block_size
        self.table = PackedMatrix(weights.block("embedding"), dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        scales: Tensor = self.table.scales[input_ids]
        codes = self.table.codes[input_ids].to(scales.dtype)
        blocks: Tensor = codes.unflatten(-1, (scales.shape[-1], self.block_size))
        return (blocks * scales.unsqueeze(-1)).flatten(-2)


class Vision(nn.Module):
    """``pixel_values [1, 3, height, width]`` float32 → ``image_features [1, tokens, D]``.

    Args:
        dtype: what the tower computes in; the caller's tower stays as it is.
        features: dtype of the output, the embeddings' own.
    """

    def __init__(self, tower: VisionTower, dtype: torch.dtype, features: torch.dtype) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).to(dtype)
        self.dtype = dtype
        self.features = features

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.tower.encode(pixel_values.to(self.dtype))["image_features"].to(self.features)


def emit_embedding(weights: DecoderWeights, path: Path, dtype: torch.dtype) -> None:
    """Write the embedding asset, with integer codes where the weights are ``QuantizedWeights``."""
    packed = isinstance(weights, QuantizedWeights)
    asset = write_asset(
        PackedEmbedding(weights, dtype)
        if isinstance(weights, QuantizedWeights)
        else Embedding(weights, dtype),
        path,
        inputs={"input_ids": torch.zeros(1, 5, dtype=torch.int32)},
        dynamic={"input_ids": {1: Dim.DYNAMIC}},
        outputs=["embeddings"],
    )
    values = weights.spec.vocab_size * weights.spec.hidden_size
    check_storage(asset, "Int8" if packed else STORED[dtype], values=values)


def emit_vision(
    tower: VisionTower,
    pixel_shape: tuple[int, ...],
    path: Path,
    *,
    dtype: torch.dtype,
    features: torch.dtype,
) -> None:
    """Write the vision asset for pictures of one shape (3, height, width)."""
    asset = write_asset(
        Vision(tower, dtype, features).eval(),
        path,
        inputs={"pixel_values": torch.zeros(1, *pixel_shape)},
        dynamic={"pixel_values": None},
        outputs=["image_features"],
    )
    check_storage(asset, STORED[dtype])
