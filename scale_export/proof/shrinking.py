"""What a target's smaller pictures cost: PyTorch ScAle on the package's size against itself on the base model's own.

The other legs are measured on the package's size, so that they can be exact. This says how far that is from the model
that its owner has, on pictures that the package shrinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from scale_export.charts.style import short_number
from scale_export.coefficients.file import Coefficients
from scale_export.core.compare import relative_error, worst_of
from scale_export.core.huggingface import Model, Processor
from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.device.generation import Inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach

from .cases import Prompt, model_logits, reference_cases
from .legs import answer_logits
from .numbers import percent
from .rows import Row, at_least, at_most

TIMES_THE_TOKENS = 2
"""How many times the package's image tokens the base's own processor makes of a measured picture, at the least, unless
its own limit is lower. Real photos can have many times more, which takes hours where no accelerator is."""

LARGER = 1.5
"""By how much a picture's sides grow until it is large enough."""

MOST_SIDE = 1 << 14
"""Pixels of the longer side of a measured picture, at the most."""

PICTURES = 2
"""How many pictures are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking:
    """PyTorch ScAle on pictures as the base's own processor makes them, against itself on the package's.

    Attributes:
        own, package: the image processor's ``size`` in the base, and in the package.
        tokens: image tokens of the measured pictures: the base's, and the package's.
        relative: max |Δlogit| / max |logit|, along the answers on the base's own pictures.
        kl: mean Kullback-Leibler divergence in nats, at the answers' positions.
        top1_agreement: share of those positions with the same best token.
        cases: how many pictures.
    """

    own: Mapping[str, int]
    package: Mapping[str, int]
    tokens: tuple[int, int]
    relative: float
    kl: float
    top1_agreement: float
    cases: int

    @property
    def finite(self) -> float | None:
        """``relative``, None where it is not finite."""
        return self.relative if np.isfinite(self.relative) else None

    def __str__(self) -> str:
        own, package = self.tokens
        return (
            f"pictures are shrunk from size {dict(self.own)} to {dict(self.package)}, and all legs are measured on "
            f"the smaller ones; where the base model makes {own} image tokens and the package {package}, the logits of "
            f"PyTorch ScAle move by {short_number(self.relative)} of the largest, and "
            f"{percent(self.top1_agreement)} of its best tokens stay; larger pictures may lose more"
        )

    def rows(self, leg: str) -> Sequence[Row]:
        """The rows of the leg that it belongs to; nothing limits them, since the target's size is asked for."""
        tokens = "{} for {} image tokens".format(*reversed(self.tokens))
        label = f"lost by shrinking pictures ({tokens}), max |Δlogit| / max |logit|"
        same = "top-1 agreement with pictures of the base model's own size"
        return (
            at_most(leg, label, self.finite, None),
            at_least(leg, same, self.top1_agreement, None, lost="top-1 changed by shrinking"),
        )

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``, in the preprocessing leg."""
        return {
            "size": {"base": dict(self.own), "package": dict(self.package)},
            "image_tokens": {"base": self.tokens[0], "package": self.tokens[1]},
            "relative_error": self.finite,
            "kl": self.kl if np.isfinite(self.kl) else None,
            "top1_agreement": self.top1_agreement,
            "cases": self.cases,
        }


def due_inputs(base: BaseModel, prompt: Prompt, sized: Inputs) -> Inputs:
    """What a package's processor must make of a prompt: what the base's own makes, unless that is of another size.

    Args:
        sized: the prompt's inputs by the base's processor at the package's size, which count where pictures are shrunk.
    """
    if base.picture_size is None:
        return sized
    own = _encoded(base.own_processor, prompt)
    same = {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in sized.items()}
    return own if same else sized


def large_prompts(base: BaseModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first of the prompts with their pictures so large that the package shrinks them; none where it never does."""
    if base.picture_size is None:
        return []
    return [_enlarged(base, prompt) for prompt in prompts if prompt.images][:PICTURES]


def shrinking(
    base: BaseModel, model: Model, coefficients: Coefficients, large: Sequence[Prompt], *, steps: int
) -> Shrinking | None:
    """What it costs on ``large`` prompts; None without one.

    Args:
        steps: decode steps of each path.
    """
    if base.picture_size is None or not large:
        return None
    cases = reference_cases(model, base.own_processor, coefficients, large, steps)
    small = [replace(case, inputs=_encoded(base.processor, case.prompt)) for case in cases]
    with attach(model, coefficients):
        moved = model_logits(model, small)
    own = [case.logits for case in cases]
    left, right = answer_logits(cases, own), answer_logits(cases, moved)
    kl, top1 = mean_kl(left, right), top1_agreement(left, right)
    assert kl is not None and top1 is not None, "there is at least one case"
    return Shrinking(
        own=dict(sorted(base.own_processor.image_processor.size)),
        package=dict(sorted(base.picture_size.items())),
        tokens=(_tokens(base, cases[0].inputs), _tokens(base, small[0].inputs)),
        relative=worst_of([relative_error(o, m) for o, m in zip(own, moved, strict=True)]),
        kl=kl,
        top1_agreement=top1,
        cases=len(cases),
    )


def _enlarged(base: BaseModel, prompt: Prompt) -> Prompt:
    """The prompt with pictures of ``TIMES_THE_TOKENS``, or as large as the base's own processor leaves any."""
    made = -1
    while True:
        own, package = (_tokens(base, _encoded(p, prompt)) for p in (base.own_processor, base.processor))
        longest = max(max(image.size) for image in prompt.images)
        if own >= TIMES_THE_TOKENS * package or (own == made and own > package) or longest > MOST_SIDE:
            return prompt
        made = own
        prompt = replace(prompt, images=tuple(_larger(image) for image in prompt.images))


def _larger(image: Image.Image) -> Image.Image:
    width, height = (round(side * LARGER) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _tokens(base: BaseModel, inputs: Inputs) -> int:
    return int(np.count_nonzero(inputs["input_ids"] == base.image_token_id))


def _encoded(processor: Processor, prompt: Prompt) -> Inputs:
    return encode_messages(processor, [user_message(prompt.images, prompt.text)])
