"""Text model variants that families are tested on."""

from __future__ import annotations

from typing import Any

from tests.helpers.models import FAMILIES

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("own", {}),
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 6}),
    "ministral-mixed": (
        "ministral",
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
}
"""Text model variants that families are tested on: name → (text model type, config overrides).

``own`` is for families that are tied to one text model.
"""


def variant_of(family: str) -> str:
    """A variant that the family takes."""
    return "own" if FAMILIES[family].own_text else "llama"
