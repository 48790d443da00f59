"""The language decoders that families are built on, each Hugging Face text config as one ``DecoderSpec``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.huggingface import TextConfig
from scale_export.core.records import DecoderSpec, Rotary
from scale_export.core.words import Activation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """What a text model type does that its config doesn't say.

    Attributes:
        rotary_class: the Hugging Face class that works out rotary frequencies, in the module of ``module_type``.
        module_type: the transformers package of the modeling code, where it isn't the model type.
        qkv_bias: a bias on queries, keys and values whatever the config says.
        gemma: norms multiply by 1 + w, and embeddings are scaled by √D.
        sandwich_norms, qk_norm: as in ``DecoderSpec``.
    """

    rotary_class: str
    module_type: str | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    gemma: bool = False


TEXT_MODELS = {
    "llama": TextModel(rotary_class="LlamaRotaryEmbedding"),
    "mistral": TextModel(rotary_class="MistralRotaryEmbedding"),
    "ministral": TextModel(rotary_class="MinistralRotaryEmbedding"),
    "qwen2": TextModel(rotary_class="Qwen2RotaryEmbedding", qkv_bias=True),
    "qwen3": TextModel(rotary_class="Qwen3RotaryEmbedding", qk_norm=True),
    "qwen2_vl_text": TextModel(rotary_class="Qwen2VLRotaryEmbedding", module_type="qwen2_vl", qkv_bias=True),
    "qwen2_5_vl_text": TextModel(
        rotary_class="Qwen2_5_VLRotaryEmbedding", module_type="qwen2_5_vl", qkv_bias=True
    ),
    "qwen3_vl_text": TextModel(
        rotary_class="Qwen3VLTextRotaryEmbedding", module_type="qwen3_vl", qk_norm=True
    ),
    "gemma": TextModel(rotary_class="GemmaRotaryEmbedding", gemma=True),
    "gemma3_text": TextModel(
        rotary_class="Gemma3RotaryEmbedding",
        module_type="gemma3",
        qk_norm=True,
        sandwich_norms=True,
        gemma=True,
    ),
}
"""By the model type of a text config."""

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Hugging Face's names of what the portable decoder computes."""

LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
SOFT_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def text_spec(config: TextConfig, *, grouped_attention: bool = False) -> DecoderSpec:
    """The decoder's shape from a Hugging Face text config.

    Args:
        grouped_attention: whether the family lets tokens of a picture or a prompt see one another.

    Raises:
        UserError: a text model, activation or rotary type that is not proved here.
    """
    text = _known(config)
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        raise UserError(
            f"activation {activation!r} is not supported by the portable decoder; supported: "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = _layer_kinds(config)
    rotaries = _rotaries(config, text, kinds)
    names = list(rotaries)
    for rotary in rotaries.values():
        if len(rotary.inv_freq) * 2 != head_dim:
            raise UserError(
                f"partial rotary embedding ({2 * len(rotary.inv_freq)} of {head_dim} dimensions) is not "
                "supported: choose another model"
            )
    attention_bias = bool(getattr(config, "attention_bias", False))
    window = getattr(config, "sliding_window", None)
    before = getattr(config, "query_pre_attn_scalar", None)
    return DecoderSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rotaries=tuple(rotaries.values()),
        layer_rotaries=tuple(names.index(layer) if layer in names else 0 for layer in kinds),
        max_positions=config.max_position_embeddings,
        sliding_windows=tuple(window if layer == "sliding_attention" else None for layer in kinds),
        attention_scale=None if before in (None, head_dim) else float(before) ** -0.5,
        activation=ACTIVATIONS[activation],
        qkv_bias=attention_bias or text.qkv_bias,
        o_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=text.qk_norm,
        sandwich_norms=text.sandwich_norms,
        norm_offset=1.0 if text.gemma else 0.0,
        embedding_scale=config.hidden_size**0.5 if text.gemma else 1.0,
        grouped_attention=grouped_attention,
    )


def _known(config: TextConfig) -> TextModel:
    """What is known of the config's text model.

    Raises:
        UserError: it is not known, or has parts that the portable decoder lacks.
    """
    kind = config.model_type
    if any(getattr(config, name, None) for name in EXPERT_COUNTS):
        raise UserError(
            f"text model {kind!r} is a mixture of experts, which is not supported: choose a dense model"
        )
    if kind not in TEXT_MODELS:
        raise UserError(
            f"text model {kind!r} is not supported by the portable decoder; supported: {', '.join(sorted(TEXT_MODELS))}"
        )
    for name in SOFT_CAPS:
        if getattr(config, name, None) is not None:
            raise UserError(
                f"{name} of text model {kind!r} is set, which is not supported: choose a model without it"
            )
    if kind == "gemma3_text" and config.use_bidirectional_attention:
        raise UserError(
            "use_bidirectional_attention is set, and a decoder that sees later tokens cannot generate: "
            "choose a model that generates"
        )
    return TEXT_MODELS[kind]


def _layer_kinds(config: TextConfig) -> tuple[str, ...]:
    """``full_attention`` or ``sliding_attention`` for every layer."""
    kinds: Sequence[str] | None = getattr(config, "layer_types", None)
    if kinds:
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise UserError(
                f"layers of type {', '.join(unknown)} are not supported by the portable decoder; supported: "
                f"full_attention, sliding_attention"
            )
        return tuple(kinds)
    window = getattr(config, "sliding_window", None)
    layers: int = config.num_hidden_layers
    return ("full_attention" if window is None else "sliding_attention",) * layers


def _rotaries(config: TextConfig, text: TextModel, kinds: Sequence[str]) -> dict[str, Rotary]:
    """The rotary embedding of each kind of layer that there is, or one for all under the name ``""``."""
    module_type = text.module_type or config.model_type
    module = importlib.import_module(f"transformers.models.{module_type}.modeling_{module_type}")
    rope = config.rope_parameters
    by_kind = "rope_type" not in rope
    for parameters in rope.values() if by_kind else [rope]:
        if not isinstance(parameters, Mapping) or not isinstance(parameters.get("rope_type"), str):
            raise UserError(
                f"rope_parameters of config.json are {parameters!r}, and must be an object with a rope_type: correct "
                f"them there"
            )
        if parameters["rope_type"] in LENGTH_DEPENDENT_ROPE:
            raise UserError(
                f"rotary type {parameters['rope_type']!r} changes with the prompt's length and is not "
                "supported: choose another model"
            )
    with refusing(
        "transformers refuses the rotary parameters of config.json", "correct rope_parameters there"
    ):
        embedding = getattr(module, text.rotary_class)(config)
    prefixes = {kind: f"{kind}_" for kind in dict.fromkeys(kinds)} if by_kind else {"": ""}
    return {kind: _rotary(embedding, prefix) for kind, prefix in prefixes.items()}


class RotaryEmbedding(Protocol):
    """A Hugging Face module; its frequencies and scales are read by name, a prefix before it where it has several."""

    def recomposition_frequencies(self, angles: Tensor) -> Tensor:
        """Of a multimodal one: ``[3, ...]``, by axis, → the axis that each frequency turns by."""
        ...


def _rotary(embedding: RotaryEmbedding, prefix: str) -> Rotary:
    """One of a Hugging Face module's rotary embeddings, by the prefix of its names."""
    inv_freq = tuple(float(f) for f in getattr(embedding, f"{prefix}inv_freq"))
    if not all(0 < f < math.inf for f in inv_freq):
        raise UserError(
            "rope_parameters of config.json give frequencies that turn nothing: correct rope_theta there"
        )
    scale = float(getattr(embedding, f"{prefix}attention_scaling"))
    return Rotary(inv_freq=inv_freq, axes=_axes(embedding, len(inv_freq)), scale=scale)


def _axes(embedding: RotaryEmbedding, count: int) -> tuple[int, ...]:
    """Which axis of a position each frequency turns by, as Hugging Face's module picks from three that are marked."""
    if not hasattr(embedding, "mrope_section"):
        return (0,) * count
    import torch

    marked = torch.arange(3.0)[:, None, None, None].repeat(1, 1, 1, count)
    return tuple(int(axis) for axis in embedding.recomposition_frequencies(marked)[0, 0, :count])
