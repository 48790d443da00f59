"""The common layout of a decoder's weights: what its modules are called, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping

from scale_export.core.records import DecoderSpec

MODULE_NAMES: Mapping[str, str] = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
"""Portable name of a part of a layer → its module inside a Hugging Face decoder layer."""

SANDWICH_NAMES: Mapping[str, str] = {
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}
"""The same where attention and MLP outputs have norms of their own, in place of the names above."""


def module_name(spec: DecoderSpec, prefix: str, name: str) -> str:
    """``layers.3.o_proj`` → ``model.language_model.layers.3.self_attn.o_proj``."""
    if name == "lm_head":
        return name
    if not name.startswith("layers."):
        return f"{prefix}.{name}"
    _, layer, part = name.split(".")
    names = {**MODULE_NAMES, **SANDWICH_NAMES} if spec.sandwich_norms else MODULE_NAMES
    return f"{prefix}.layers.{layer}.{names[part]}"


def module_shapes(spec: DecoderSpec, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a Hugging Face text model that the decoder reads, by its name there."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.embed_tokens.weight": (spec.vocab_size, spec.hidden_size)
    }
    for name, (out_features, in_features, has_bias) in spec.linears().items():
        module = module_name(spec, prefix, name)
        shapes[f"{module}.weight"] = (out_features, in_features)
        if has_bias:
            shapes[f"{module}.bias"] = (out_features,)
    for name, width in spec.norms().items():
        shapes[f"{module_name(spec, prefix, name)}.weight"] = (width,)
    return shapes
