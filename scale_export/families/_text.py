"""The language decoders that families are built on: Llama, Mistral and Qwen2 as one ``DecoderSpec``."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UserError
from ..records import DecoderSpec, Rotary

ROTARY_CLASSES = {
    "llama": "LlamaRotaryEmbedding",
    "mistral": "MistralRotaryEmbedding",
    "qwen2": "Qwen2RotaryEmbedding",
}
"""Text model type → the Hugging Face class that works out its rotary frequencies."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def text_spec(config: Any) -> DecoderSpec:
    """The decoder's shape from a Hugging Face text config.

    Raises:
        UserError: a text model, activation or rotary type that is not proved here.
    """
    kind = config.model_type
    if kind not in ROTARY_CLASSES:
        known = ", ".join(sorted(ROTARY_CLASSES))
        raise UserError(f"text model {kind!r} is not supported by the portable decoder; supported: {known}")
    if config.hidden_act != "silu":
        raise UserError(
            f"activation {config.hidden_act!r} is not supported by the portable decoder; supported: silu"
        )
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = _rotary(config)
    if len(rotary.inv_freq) * 2 != head_dim:
        raise UserError(
            f"partial rotary embedding ({2 * len(rotary.inv_freq)} of {head_dim} dimensions) is not supported"
        )
    attention_bias = bool(getattr(config, "attention_bias", False))
    return DecoderSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rotaries=(rotary,),
        layer_rotaries=(0,) * config.num_hidden_layers,
        max_positions=config.max_position_embeddings,
        sliding_windows=_windows(config),
        qkv_bias=attention_bias or kind == "qwen2",
        o_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
    )


def _rotary(config: Any) -> Rotary:
    rope = config.rope_parameters
    if rope["rope_type"] in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"rotary type {rope['rope_type']!r} changes with the prompt's length and is not supported"
        )
    module = importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    embedding = getattr(module, ROTARY_CLASSES[config.model_type])(config)
    inv_freq = tuple(float(f) for f in embedding.inv_freq)
    return Rotary(inv_freq=inv_freq, axes=(0,) * len(inv_freq), scale=float(embedding.attention_scaling))


def _windows(config: Any) -> tuple[int | None, ...]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    windows: tuple[int | None, ...] = (window,) * layers
    return windows
