"""The language decoders that families are built on: Llama, Mistral and Qwen's as one ``DecoderSpec``."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from ..records import DecoderSpec, Rotary
from ._processor import model_class

ROTARY_CLASSES = {
    "llama": "llama.modeling_llama.LlamaRotaryEmbedding",
    "mistral": "mistral.modeling_mistral.MistralRotaryEmbedding",
    "qwen2": "qwen2.modeling_qwen2.Qwen2RotaryEmbedding",
    "qwen2_vl_text": "qwen2_vl.modeling_qwen2_vl.Qwen2VLRotaryEmbedding",
    "qwen2_5_vl_text": "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLRotaryEmbedding",
    "qwen3_vl_text": "qwen3_vl.modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding",
}
"""Text model type → the Hugging Face class, below ``transformers.models``, that works out its rotary frequencies."""

BIASED = {"qwen2", "qwen2_vl_text", "qwen2_5_vl_text"}
"""Text models whose queries, keys and values have biases, whatever their config says."""

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
        qkv_bias=attention_bias or kind in BIASED,
        o_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=kind == "qwen3_vl_text",
    )


def _rotary(config: Any) -> Rotary:
    rope = config.rope_parameters
    if rope["rope_type"] in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"rotary type {rope['rope_type']!r} changes with the prompt's length and is not supported"
        )
    embedding = model_class(ROTARY_CLASSES[config.model_type])(config)
    inv_freq = tuple(float(f) for f in embedding.inv_freq)
    return Rotary(inv_freq=inv_freq, axes=_axes(embedding), scale=float(embedding.attention_scaling))


def _axes(embedding: Any) -> tuple[int, ...]:
    """Which axis of a position each frequency turns by, as Hugging Face's module picks from three that are marked."""
    count = len(embedding.inv_freq)
    if not hasattr(embedding, "mrope_section"):
        return (0,) * count
    import torch

    marked = torch.arange(3.0)[:, None, None, None].repeat(1, 1, 1, count)
    return tuple(int(axis) for axis in embedding.recomposition_frequencies(marked)[0, 0, :count])


def _windows(config: Any) -> tuple[int | None, ...]:
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    windows: tuple[int | None, ...] = (window,) * layers
    return windows
