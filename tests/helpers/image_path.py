"""A family's image path, ours and Hugging Face's."""

from __future__ import annotations

import torch

from scale_export.core.compare import relative_error
from scale_export.core.records import Array
from scale_export.device.generation import Generator, Inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel
from scale_export.model.engine import ReferenceEngine
from tests.helpers.emission import generator
from tests.helpers.pictures import picture

PICTURES = {
    "square": [(48, 48)],
    "wide": [(96, 40)],
    "wider": [(300, 20)],
    "tall": [(40, 96)],
    "taller": [(20, 300)],
    "large": [(150, 110)],
    "tiny": [(5, 4)],
    "two": [(64, 48), (30, 90)],
    "none": [],
}
"""(width, height) of a prompt's pictures."""


def inputs_of(base: BaseModel, name: str) -> dict[str, Array]:
    pictures = [picture(seed, size) for seed, size in enumerate(PICTURES[name])]
    return encode_messages(base.processor, [user_message(pictures, "where is the circle ?")])


def portable(base: BaseModel) -> Generator:
    """The family's image path before the portable decoder, unscaled."""
    engine = ReferenceEngine(
        base.weights,
        scaled=None,
        vision=base.family.vision_module(base.model),
        image_token_id=base.family.image_token_id(base.config),
        gate=None,
    )
    return generator(engine, base, "weights")


@torch.no_grad()
def hugging_face(base: BaseModel, inputs: Inputs) -> tuple[Array, Array]:
    """Its ``inputs_embeds [1, T, D]``, features in place, and the logits ``[1, V]`` after the prompt."""
    caught: list[Array] = []
    handle = base.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["inputs_embeds"].numpy()), with_kwargs=True
    )
    output = base.model(**{name: torch.tensor(value) for name, value in inputs.items()})
    handle.remove()
    return caught[0], output.logits[:, -1].numpy()


def logits_error(base: BaseModel, name: str) -> float:
    inputs = inputs_of(base, name)
    return relative_error(hugging_face(base, inputs)[1], portable(base).prefill(inputs).logits)
