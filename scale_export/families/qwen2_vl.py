"""Qwen2-VL: pictures in their own resolution, positions by time, row and column (Wang et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scale_export.core.huggingface import Model

from ._qwen import QwenVL

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


class Qwen2VL(QwenVL):
    """``Qwen2VLForConditionalGeneration`` in Hugging Face transformers; pictures, no videos."""

    model_type = "qwen2_vl"
    processor = "qwen2_vl.processing_qwen2_vl.Qwen2VLProcessor"
    vision_rotary = "qwen2_vl.modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding"

    def vision_module(self, model: Model) -> VisionTower:
        from scale_export.families._towers.qwen import QwenTower

        return QwenTower(model.model.visual)


FAMILY = Qwen2VL()
