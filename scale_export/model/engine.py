"""The portable decoder in PyTorch as an ``Engine``: what every emitted package is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scale_export.core.records import Array, Float32
from scale_export.core.words import Scope
from scale_export.device.engine import Held, Phase, Scalars, Step, Tap, tower_feeds

from .arithmetic import TorchKernels, empty_cache
from .decoder import Cache, Gate, PortableDecoder
from .weights import DecoderWeights


@dataclass(kw_only=True)
class TorchCache:
    """Growing caches of every layer, and which of their slots hold a token (``[rows, P]`` int64)."""

    layers: list[Cache]
    mask: NDArray[np.int64]


class TappedKernels(TorchKernels):
    """The reference's arithmetic, telling of every matrix product."""

    def __init__(self, weights: DecoderWeights, tap: Tap) -> None:
        super().__init__(weights)
        self.tap = tap

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = super().linear(name, x)
        self.tap(name, x.numpy(), y.numpy())
        return y


class ReferenceInputs:
    """What comes before the decoder, in float32: vision tower and embedding."""

    def __init__(self, weights: DecoderWeights, vision: nn.Module, image_token_id: int) -> None:
        self.spec = weights.spec
        self._vision = vision.eval()
        self._table = weights.embedding()
        self._image_token_id = image_token_id

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden_size

    @torch.no_grad()
    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._vision(**{n: torch.from_numpy(value) for n, value in tower_feeds(inputs).items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        embeds: Array = self._table[torch.from_numpy(input_ids)].numpy()
        if len(image_features):  # a generated image token, without a picture, keeps its word embedding
            embeds[input_ids == self._image_token_id] = image_features
        return embeds


class ReferenceEngine(ReferenceInputs):
    """Vision tower, embedding and portable decoder in float32.

    Args:
        weights: of phase ``base``.
        scaled: of phase ``scaled``; the same as ``weights`` where there is one set.
        gate: the scalars of a gated decoder, with their scope, or None.
        kernels: what holds the weights; see ``TappedKernels``, and ``streaming`` for kernels that hold none.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        *,
        scaled: DecoderWeights | None,
        vision: nn.Module,
        image_token_id: int,
        gate: tuple[Scope, Scalars] | None,
        kernels: Callable[[DecoderWeights], TorchKernels] = TorchKernels,
    ) -> None:
        super().__init__(weights, vision, image_token_id)

        self._kernels = kernels(weights)
        second = self._kernels if scaled is None else kernels(scaled)
        self._decoders: dict[Phase, PortableDecoder] = {
            "base": PortableDecoder(self.spec, self._kernels, last_logits_only=True),
            "scaled": PortableDecoder(self.spec, second, last_logits_only=True),
        }
        self._gate = gate

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The matrices of phase ``base``, the embedding among them."""
        kept = self._kernels.tensors
        return {**{name: kept[name] for name in self.spec.linears()}, "embedding": self._table}

    def swap(self, name: str, value: Tensor) -> None:
        """Put another matrix in the place of one of ``tensors``."""
        if name == "embedding":
            self._table = value
        else:
            self._kernels.tensors[name] = value

    @property
    def executed_by(self) -> str:
        return f"PyTorch {torch.__version__}, float32"

    @property
    def can_override(self) -> bool:
        return self._gate is not None

    def new_cache(self, rows: int) -> TorchCache:
        return TorchCache(layers=empty_cache(self.spec, rows), mask=np.zeros((rows, 0), np.int64))

    def held_cache(self, held: Held) -> TorchCache:
        spec, layers = self.spec, []
        for layer in range(spec.num_layers):
            made = held.layer(layer, spec.num_kv_heads, spec.head_dim)
            keys, values = (torch.from_numpy(part[None, :, : held.tokens]) for part in made)
            layers.append((keys, values))
        return TorchCache(layers=layers, mask=np.ones((1, held.tokens), np.int64))

    def cut(self, cache: TorchCache, tokens: int) -> None:
        cache.layers = [(keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in cache.layers]
        cache.mask = cache.mask[:, :tokens]

    @torch.no_grad()
    def keys(self, layer: int, step: Step, phase: Phase) -> Float32 | None:
        decoder = PortableDecoder(
            self.spec, self._decoders[phase].kernels, layers=range(layer + 1), last_logits_only=True
        )
        cache = self.new_cache(len(step.lengths))
        cache.layers = cache.layers[: layer + 1]
        self._run(decoder, cache, step, None)
        keys: Float32 = cache.layers[layer][0].numpy()
        return keys

    @torch.no_grad()
    def forward(self, cache: TorchCache, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        logits = self._run(self._decoders[phase], cache, step, scalars)
        result: Float32 = logits[:, -1].numpy()
        return result

    def _run(
        self, decoder: PortableDecoder, cache: TorchCache, step: Step, scalars: Scalars | None
    ) -> Tensor:
        """A step through a decoder's layers, over a cache of as many; in float32, whatever it was embedded in."""
        tokens = step.inputs_embeds.shape[1]
        new = (np.arange(tokens) < step.lengths[:, None]).astype(np.int64)
        cache.mask = np.concatenate((cache.mask, new), axis=1)
        position = step.lengths - 1 if step.gated else np.full_like(step.lengths, tokens)
        group, deepstack = step.attention_group, step.deepstack
        output: Tensor
        output, cache.layers = decoder(
            torch.from_numpy(np.ascontiguousarray(step.inputs_embeds, np.float32)),
            torch.from_numpy(cache.mask),
            torch.from_numpy(step.position_ids),
            cache.layers,
            self._make_gate(scalars),
            torch.from_numpy(position),
            None if group is None else torch.from_numpy(group),
            () if deepstack is None else list(torch.from_numpy(deepstack.astype(np.float32, copy=False))),
        )
        return output

    def _make_gate(self, scalars: Scalars | None) -> Gate | None:
        if self._gate is None:
            return None
        scope, defaults = self._gate
        chosen = scalars or defaults
        return Gate(
            scope=scope, attn_scale=torch.from_numpy(chosen.attn), mlp_scale=torch.from_numpy(chosen.mlp)
        )
