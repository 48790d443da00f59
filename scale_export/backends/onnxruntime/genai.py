"""What onnxruntime-genai's runtime is told of a package: its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scale_export.core.huggingface import Config
from scale_export.core.records import DecoderSpec, Json
from scale_export.device.rules import GenerationRules

FOLLOWED: Final = frozenset({"repetition_penalty", "min_length"})
"""The rules that the runtime follows, and as transformers does."""

NO_TOKEN: Final = -1
"""In place of a padding token: the runtime hides every prompt token of that id, and some models end turns with it."""


def genai_config(
    spec: DecoderSpec,
    config: Config,
    graphs: Mapping[str, str],
    *,
    image_token_id: int,
    rules: GenerationRules,
    context_length: int,
) -> dict[str, Json]:
    """``genai_config.json`` of a Hugging Face ``config`` whose ``model_type`` is one of ``MODEL_TYPES``.

    Args:
        graphs: ``decoder``, ``embedding``, ``vision`` → file name.
        rules: beside end tokens none but ``FOLLOWED``.
    """
    vision: dict[str, Json] = {"filename": graphs["vision"], "outputs": {"image_features": "image_features"}}
    model: dict[str, Json] = {
        "type": config.model_type,
        "vocab_size": spec.vocab_size,
        "context_length": context_length,
        "eos_token_id": sorted(rules.end_tokens),
        "pad_token_id": NO_TOKEN,
        "image_token_id": image_token_id,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": graphs["decoder"],
            "hidden_size": spec.hidden_size * (1 + spec.deepstack_layers),
            "num_attention_heads": spec.num_heads,
            "num_key_value_heads": spec.num_kv_heads,
            "num_hidden_layers": spec.num_layers,
            "head_size": spec.head_dim,
            "inputs": {
                "inputs_embeds": "inputs_embeds",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
        "embedding": {
            "filename": graphs["embedding"],
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": vision,
    }
    if spec.position_axes > 1:
        model["vision_start_token_id"] = config.vision_start_token_id
        model["video_token_id"] = config.video_token_id
        vision["spatial_merge_size"] = config.vision_config.spatial_merge_size
    search: dict[str, Json] = {
        "do_sample": False,
        "num_beams": 1,
        "max_length": context_length,
        "past_present_share_buffer": True,
        **{name: getattr(rules, name) for name in rules.acting},
    }
    return {"model": model, "search": search}
