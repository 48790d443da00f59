"""The generic route: an image-text model that has no file here, over a text model that is known.

Trust comes from checks alone, each of them a refusal that names what has no place:

1. The config has a text config of a known text model, a vision config and an image token.
2. The model, built without weights, is a vision tower, a projector and that text model, and nothing more; the text
   model's class and every one of its weights are those of the portable decoder.
3. The processor gives pixels ``[pictures, 3, height, width]`` and words, and nothing more.
4. Every export's fold leg runs the portable decoder beside Hugging Face's model, pictures included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._text import TEXT_MODELS, text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower

TEXT = "language_model"
TOWERS = ("vision_tower", "vision_model")
PROJECTORS = ("multi_modal_projector", "aligner")
"""Names of a model's parts, inside its ``model``."""

INPUTS = {"input_ids", "attention_mask", "pixel_values"}
"""What a processor may give."""


class Generic(Family):
    """Any ``ForConditionalGeneration`` class whose pictures are rows in place of image tokens, in causal order."""

    generic = True

    def __init__(self, model_type: str):
        self.model_type = model_type

    def decoder_spec(self, config: Config) -> DecoderSpec:
        """The decoder's shape, after checks 1 and 2.

        Raises:
            UserError: a check fails.
        """
        for part in ("text_config", "vision_config", "image_token_id"):
            if getattr(config, part, None) is None:
                raise self._refusal(f"its config has no {part}")
        spec = text_spec(config.text_config)
        if getattr(config.text_config, "use_bidirectional_attention", None):
            raise self._refusal("its tokens see later ones")
        self.check_structure(without_weights(config), spec, config.text_config.model_type)
        return spec

    def check_structure(self, model: Model, spec: DecoderSpec, text: str) -> None:
        """Check 2 of a model whose text model type is ``text``; its weights are not read.

        Raises:
            UserError: a module or a weight that has no place.
        """
        from ._layout import module_shapes

        outer = {name: module for name, module in model.named_children() if name not in ("model", "lm_head")}
        inner = dict(getattr(model, "model", model).named_children())
        own = [f"model.{name}" for name, _ in model.model.named_parameters(recurse=False)]
        strange = [*outer, *(f"model.{n}" for n in inner if n not in (TEXT, *TOWERS, *PROJECTORS)), *own]
        if strange:
            raise self._refusal(f"{strange[0]} of {type(model).__name__} has no place")
        for roles in ((TEXT,), TOWERS):
            if not any(name in inner for name in roles):
                raise self._refusal(f"{type(model).__name__} has no model.{' or model.'.join(roles)}")
        module_type = TEXT_MODELS[text].module_type or text
        found = type(inner[TEXT])
        if found.__module__ != f"transformers.models.{module_type}.modeling_{module_type}":
            raise self._refusal(f"model.{TEXT} is {found.__name__}, not the text model that its config names")
        expected = module_shapes(spec, self.text_prefix)
        shapes = {
            name: tuple(weight.shape)
            for name, weight in model.named_parameters(remove_duplicate=False)
            if name.startswith((f"{self.text_prefix}.", "lm_head."))
        }
        for name in sorted(shapes.keys() ^ expected.keys()):
            what = "has no place" if name in shapes else "is missing"
            raise self._refusal(f"the weight {name} of {type(model).__name__} {what}")
        for name, shape in shapes.items():
            if shape != expected[name]:
                raise self._refusal(f"the weight {name} is {list(shape)}, not {list(expected[name])}")

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.features import ImageFeatures

        inner = copy.copy(model.model)
        inner._modules = {name: module for name, module in inner._modules.items() if name != TEXT}
        return ImageFeatures(inner)

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """The pixels as they are, after check 3.

        Raises:
            UserError: the check fails.
        """
        strange, pixels = sorted(inputs.keys() - INPUTS), inputs["pixel_values"]
        if strange:
            raise self._refusal(f"its processor gives {', '.join(strange)} beside pixels and words")
        if pixels.ndim != 4:
            raise self._refusal(f"its processor gives pixels of shape {list(pixels.shape)}")
        return pixels

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"model type {self.model_type!r} is not among the supported families, and the generic route "
            f"refuses it, because {reason}: "
            f"choose a supported family, or add one"
        )


def without_weights(config: Config) -> Model:
    """Hugging Face's model of a config, all its tensors shapes only."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    return model
