"""Image features as Hugging Face's own model works them out; needs torch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from scale_export.core.errors import UserError

from .tower import VisionTower


class _Features(Protocol):
    pooler_output: object


class ImageModel(Protocol):
    """A model that has image features."""

    def get_image_features(self, pixel_values: Tensor) -> _Features: ...


class ImageFeatures(VisionTower):
    """``get_image_features`` of a model that is called for nothing else."""

    def __init__(self, model: ImageModel):
        super().__init__()
        self.model = model
        self.constants = {}

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        features = self.model.get_image_features(pixel_values).pooler_output
        if not isinstance(features, Tensor) or features.ndim != 3:
            raise UserError(
                f"{type(self.model).__name__} gives image features that are not [pictures, tokens, width], which the "
                f"generic route needs: choose a supported family"
            )
        return {"image_features": features}
