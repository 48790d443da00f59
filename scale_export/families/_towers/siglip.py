"""SigLIP on squares of one size, as several families have it; needs torch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config

from .tower import VisionTower


class SiglipTower(Protocol):
    """Hugging Face's module."""

    embeddings: nn.Module
    encoder: nn.Module
    post_layernorm: nn.Module


class SiglipFeatures(VisionTower):
    """SigLIP's last layer through its norm and a projector, without the pooling head that nothing reads."""

    def __init__(self, tower: SiglipTower, projector: nn.Module):
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.constants = {}

    def encode(self, pixel_values: Tensor) -> dict[str, Tensor]:
        states = self.tower.encoder(inputs_embeds=self.tower.embeddings(pixel_values)).last_hidden_state
        return {"image_features": self.projector(self.tower.post_layernorm(states))}


def check_tower(config: Config) -> None:
    """Refuse a tower that is not SigLIP.

    Raises:
        UserError: another vision model.
    """
    kind = config.vision_config.model_type
    if kind != "siglip_vision_model":
        raise UserError(
            f"vision tower {kind!r} under {config.model_type} is not supported; supported: siglip_vision_model"
        )
