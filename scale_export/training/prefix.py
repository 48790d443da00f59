"""Training on the answer alone: cached keys and values of the prompts (scope ``last``).

Under scope ``last`` nothing before the last prompt token is scaled (g = 0 there), so the keys and values of
that prefix don't depend on the scalars. They are worked out once per question by the base model and kept,
and a training step is one short forward over the last prompt token and the answer's tokens, with g = 1 at
all of them: what the deployed model does, with the right answer fed back in.

Prefixes are kept in the model's own dtype, float32 for the shipped model: there, rounding them to float16
moves the loss by 1e-5 and its gradient by 1e-4, where the full forward and the short one differ by 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from scale_export.core.huggingface import Model
from scale_export.families import prompt_sees_itself
from scale_export.model.hooks import ScaleHandle

from .examples import IGNORED, Batch, Example, prefix_inputs

Prefix = list[Tensor]
"""Per layer ``[2, Hkv, P, hd]``: the keys and the values of one question's prompt but its last token."""


def can_cache_prefix(model: Model) -> bool:
    """Whether a prefix is plain keys and values at consecutive positions, whatever the prompt's last token is.

    Not so with states, with 3-D positions, or where a prompt's tokens see its last one.
    """
    if prompt_sees_itself(model.config.model_type):
        return False
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return "mrope_section" not in rope and kinds <= {"full_attention", "sliding_attention"}


class PrefixStore:
    """The prefixes of examples, kept until ``budget`` bytes are full, worked out again beyond.

    What came first stays: batches go through the questions in rounds, where dropping the oldest would
    always drop the next one needed.
    """

    def __init__(self, model: Model, budget: int) -> None:
        self._model = model
        self._budget = budget
        self._kept: dict[Example, Prefix] = {}
        self.used = 0

    def batch(self, examples: Sequence[Example], handle: ScaleHandle) -> Batch:
        """The short forward of these examples: last prompt token and answer, over left-padded prefixes.

        ``handle`` is that of the hooks which are attached to the model; its gate is shut while prefixes are
        worked out.
        """
        prefixes = self._prefixes(examples, handle)
        lengths = [p[0].shape[2] for p in prefixes]
        longest, device = max(lengths), examples[0].prompt_ids.device
        steps = max(len(e.target) for e in examples)
        ids = torch.zeros(len(examples), steps, dtype=torch.long, device=device)
        targets = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            count = len(example.target)
            targets[row, :count] = torch.tensor(example.target, device=device)
            ids[row, 0], ids[row, 1:count] = example.prompt_ids[-1], targets[row, : count - 1]
        start = torch.tensor(lengths, device=device)[:, None]
        past = torch.arange(longest, device=device) >= longest - start
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.cat([past, targets != IGNORED], dim=1).long(),
            "position_ids": start + torch.arange(steps, device=device),
            "past_key_values": _cache(prefixes, longest),
            "use_cache": True,
        }
        return Batch(inputs=inputs, targets=targets, gate=(targets != IGNORED).float())

    def _prefixes(self, examples: Sequence[Example], handle: ScaleHandle) -> list[Prefix]:
        missing = list(dict.fromkeys(e for e in examples if e not in self._kept))
        fresh = dict(zip(missing, self._compute(missing, handle), strict=True)) if missing else {}
        found = [self._kept.get(e) or fresh[e] for e in examples]
        for example, prefix in fresh.items():
            size = sum(layer.nbytes for layer in prefix)
            if self.used + size <= self._budget:
                self._kept[example] = [layer.clone() for layer in prefix]
                self.used += size
        return found

    @torch.no_grad()
    def _compute(self, examples: Sequence[Example], handle: ScaleHandle) -> list[Prefix]:
        """The base model over the prompts but their last tokens, left-padded."""
        inputs = prefix_inputs(examples)
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        mask, enabled = handle.gate_mask, handle.gate_enabled
        handle.gate_mask, handle.gate_enabled = None, False
        try:
            self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            handle.gate_mask, handle.gate_enabled = mask, enabled
        layers = [torch.stack([layer.keys, layer.values], dim=1) for layer in cache.layers]
        lengths = [len(example.prompt_ids) - 1 for example in examples]
        return [[layer[row, :, :, -length:] for layer in layers] for row, length in enumerate(lengths)]


def _cache(prefixes: Sequence[Prefix], longest: int) -> DynamicCache:
    """The prefixes as one left-padded cache."""
    pairs = []
    for layers in zip(*prefixes, strict=True):
        _, heads, _, width = layers[0].shape
        both = layers[0].new_zeros(len(layers), 2, heads, longest, width)
        for row, layer in enumerate(layers):
            both[row, :, :, longest - layer.shape[2] :] = layer
        pairs.append((both[:, 0], both[:, 1]))
    return DynamicCache(pairs)
