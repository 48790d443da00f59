"""A model's chat prompt with a gap where the user's words stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Processor
from scale_export.core.records import Array
from scale_export.device.generation import Inputs
from scale_export.device.prompts import encode_messages, user_message

PROBES = (("where is", "the"), ("a", "b c"), ("0", "1"))
"""Pairs of words for the gap: what two prompts don't share is the gap."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A prompt as the processor encodes it, generation prompt included; tokens ``start`` to ``stop`` are words.

    ``inputs`` are those of one prompt: ``input_ids [1, T]``, what else there is per token, pixels.
    """

    inputs: Inputs
    start: int
    stop: int

    @property
    def after(self) -> tuple[int, ...]:
        """The tokens behind the gap: the end of the user's turn, and the beginning of the model's."""
        return tuple(self.inputs["input_ids"][0, self.stop :].tolist())

    def before(self) -> dict[str, Array]:
        """The inputs of the prompt up to the gap."""
        return self._joined([], self.inputs["input_ids"].shape[1])

    def filled(self, words: Sequence[int]) -> dict[str, Array]:
        """The inputs of the prompt with those tokens in the gap."""
        return self._joined(words, self.stop)

    def _joined(self, words: Sequence[int], behind: int) -> dict[str, Array]:
        shape = self.inputs["input_ids"].shape
        made = {}
        for name, value in self.inputs.items():
            if value.shape != shape:
                made[name] = value  # pictures
                continue
            gap = np.repeat(value[:, self.start : self.start + 1], len(words), axis=1)
            if name == "input_ids":
                gap[0] = words
            made[name] = np.concatenate((value[:, : self.start], gap, value[:, behind:]), axis=1)
        return made


def frame_of(processor: Processor, images: Sequence[Image.Image]) -> Frame:
    """The frame of one user turn with these pictures.

    Raises:
        UserError: a chat template that shows no such words, or as ``encode_messages``.
    """
    for pair in PROBES:
        prompts = [encode_messages(processor, [user_message(images, text)]) for text in pair]
        if (gap := _gap(prompts)) is not None:
            return Frame(prompts[0], *gap)
    raise UserError(
        "the model's chat template shows no place for a user's words, so nothing can be written there: calibrate on a "
        "question set with --calib"
    )


def _gap(prompts: Sequence[Mapping[str, Array]]) -> tuple[int, int] | None:
    """Where the first prompt has other tokens than the second; None where one has nothing there."""
    first, second = (prompt["input_ids"][0].tolist() for prompt in prompts)
    shortest = min(len(first), len(second))
    start = next((i for i in range(shortest) if first[i] != second[i]), shortest)
    behind = next((i for i in range(shortest - start) if first[-1 - i] != second[-1 - i]), shortest - start)
    if behind == 0 or shortest - start - behind <= 0:
        return None
    return start, len(first) - behind
