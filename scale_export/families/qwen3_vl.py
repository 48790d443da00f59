"""Qwen3-VL: interpolated positions in the tower, features of several depths in the decoder (Qwen team, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from scale_export.core.huggingface import Config, Model
from scale_export.core.records import Array, DecoderSpec

from ._patches import Grid, interpolation, merged
from ._qwen import QwenVL
from ._runtime import Runtime, integer

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Qwen3VL(QwenVL):
    """``Qwen3VLForConditionalGeneration`` in Hugging Face transformers; pictures, no videos."""

    model_type = "qwen3_vl"
    processor = "qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor"
    vision_rotary = "qwen3_vl.modeling_qwen3_vl.Qwen3VLVisionRotaryEmbedding"

    def decoder_spec(self, config: Config) -> DecoderSpec:
        depths = len(config.vision_config.deepstack_visual_indexes)
        return replace(super().decoder_spec(config), deepstack_layers=depths)

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.qwen import DeepstackTower

        return DeepstackTower(model.model.visual)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        side = int(config.vision_config.num_position_embeddings**0.5)
        return super().runtime_config(config) | {"learned_side": side}

    def picture_inputs(self, patches: Array, grid: Grid, runtime: Runtime) -> dict[str, Array]:
        taps, shares = interpolation(grid, integer(runtime, "learned_side"))
        return {
            **super().picture_inputs(patches, grid, runtime),
            "taps": merged(taps, integer(runtime, "merge")),
            "shares": merged(shares, integer(runtime, "merge")),
        }

    def deepstack(
        self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime
    ) -> Array | None:
        layers = [name for name in outputs if name.startswith("deepstack_")]
        return np.stack([self.packed(outputs[name], inputs, runtime) for name in sorted(layers, key=_number)])


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


FAMILY = Qwen3VL()
