"""Decoder weights, read one tensor at a time under the portable decoder's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scale_export.core.records import DecoderSpec
from scale_export.families._layout import module_name

from .checkpoint import Checkpoint


class DecoderWeights(Protocol):
    """A decoder's weights by portable name (``layers.3.o_proj``, ``norm``, ``lm_head``), float32.

    Each call may read from disk, so that a model larger than memory can flow through. Tensors may be shared: whoever
    changes one in place changes the model.
    """

    @property
    def spec(self) -> DecoderSpec: ...

    def matrix(self, name: str) -> Tensor:
        """``[out_features, in_features]``."""
        ...

    def bias(self, name: str) -> Tensor | None:
        """``[out_features]``, or None where the matrix has no bias."""
        ...

    def norm(self, name: str) -> Tensor:
        """What the normalised activations are multiplied by, ``[width]``; any offset of the family is in it."""
        ...

    def embedding(self) -> Tensor:
        """``[vocab_size, hidden_size]``, as looked up: any scale of the family is in it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWeights:
    """The base model's decoder weights, straight from its safetensors files.

    Attributes:
        prefix: the module that holds ``layers``, ``norm`` and ``embed_tokens``.
        held: stored name → what was read of it, which every read of another tensor adds to; None holds nothing.
    """

    checkpoint: Checkpoint
    spec: DecoderSpec
    prefix: str
    held: dict[str, Tensor] | None = None

    def module_name(self, name: str) -> str:
        """The Hugging Face module of a part, see ``module_name``."""
        return module_name(self.spec, self.prefix, name)

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding table: one tensor of the files."""
        head, table = f"{self.module_name('lm_head')}.weight", f"{self.prefix}.embed_tokens.weight"
        return self.checkpoint.resolve(head) == self.checkpoint.resolve(table)

    def _read(self, module_name: str) -> Tensor:
        if self.held is None:
            return self.checkpoint.tensor(module_name).to(torch.float32)
        stored = self.checkpoint.resolve(module_name)
        if stored not in self.held:
            self.held[stored] = self.checkpoint.tensor(module_name).to(torch.float32)
        return self.held[stored]

    def matrix(self, name: str) -> Tensor:
        return self._read(f"{self.module_name(name)}.weight")

    def bias(self, name: str) -> Tensor | None:
        has_bias = self.spec.linears()[name][2]
        return self._read(f"{self.module_name(name)}.bias") if has_bias else None

    def norm(self, name: str) -> Tensor:
        return self._read(f"{self.module_name(name)}.weight") + self.spec.norm_offset

    def embedding(self) -> Tensor:
        return self._read(f"{self.prefix}.embed_tokens.weight") * self.spec.embedding_scale
