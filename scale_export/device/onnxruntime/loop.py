"""Token by token through one graph: bound once, and its buffers used again at each step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from scale_export.core.records import Array

MASK = "attention_mask"
"""The one input of a step that grows from step to step."""


def bind_cache(binding: ort.IOBinding, cache: Mapping[str, ort.OrtValue]) -> None:
    """Give a run the cache's buffers, as what it reads and as what it writes."""
    for name, value in cache.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)


class Loop:
    """Steps of one session over one cache, all of the same shapes but for the mask.

    Args:
        cache: input → buffer, in the cache's own memory.
        feeds: the inputs of the first step, by which buffers are made.
        logits: where logits ``[rows, 1, V]`` go at each step.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: Mapping[str, ort.OrtValue],
        feeds: Mapping[str, Array],
        logits: Array,
    ) -> None:
        self._session, self._logits = session, logits
        self._binding = session.io_binding()
        self._buffers = {name: np.array(value, order="C") for name, value in feeds.items() if name != MASK}
        self._values = {name: _value(buffer) for name, buffer in self._buffers.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._out = _value(logits)
        self._binding.bind_ortvalue_output("logits", self._out)
        bind_cache(self._binding, cache)
        self._mask: ort.OrtValue | None = None

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """One step; its logits lie in the buffer until the next one."""
        for name, buffer in self._buffers.items():
            buffer[...] = feeds[name]
        self._mask = _value(np.ascontiguousarray(feeds[MASK]))  # held while it is bound: its memory is read
        self._binding.bind_ortvalue_input(MASK, self._mask)
        self._session.run_with_iobinding(self._binding)
        return self._logits


def _value(array: Array) -> ort.OrtValue:
    """An array as a session takes it: its own memory."""
    return ort.OrtValue.ortvalue_from_numpy(array)
