"""Gemma 3: SigLIP at one size, pooled to a square of tokens that see one another (Gemma Team, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from scale_export.core.huggingface import Config, Model
from scale_export.core.records import Array, DecoderSpec

from ._family import Family
from ._runtime import Runtime, integer
from ._text import text_spec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration`` in Hugging Face transformers.

    With pan and scan, which its processor has off by default, a picture's crops are pictures of their own.
    """

    model_type = "gemma3"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        from scale_export.families._towers.siglip import check_tower

        check_tower(config)
        return text_spec(config.text_config, grouped_attention=True)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.gemma import PooledProjector
        from scale_export.families._towers.siglip import SiglipFeatures

        inner = model.model
        return SiglipFeatures(inner.vision_tower, PooledProjector(inner.multi_modal_projector))

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        return {"image_token_id": self.image_token_id(config)}

    def attention_groups(self, inputs: Mapping[str, Array], runtime: Runtime) -> NDArray[np.int64]:
        """A group for every unbroken run of image tokens, as Hugging Face numbers its ``token_type_ids``."""
        image = inputs["input_ids"] == integer(runtime, "image_token_id")
        starts = image & ~np.pad(image, ((0, 0), (1, 0)))[:, :-1]
        return np.where(image, np.cumsum(starts, axis=1) - 1, -1)


FAMILY = Gemma3()
