"""Where ScAle's scalars act in a Hugging Face model (``docs/scale.md``).

Head h of a layer is columns ``h·head_dim … (h+1)·head_dim`` of the input of ``o_proj``, so that a bias of
``o_proj`` is not scaled. The MLP's scalar acts on the MLP's output, its bias included, or on the output of
the norm after it where the family has one. What differs between families is data here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from scale_export.core.errors import UserError
from scale_export.core.huggingface import ScaledModel
from scale_export.core.words import MlpSite

DECODER_PATHS = ("model.language_model", "language_model", "model.text_model", "text_model", "model", "")
"""Where a text decoder (the module with ``layers``) may lie in a Hugging Face model, most specific first."""

MLP_MODULES: Mapping[MlpSite, tuple[str, ...]] = {
    "post_norm": ("post_feedforward_layernorm", "post_mlp_layernorm"),
    "output": ("mlp",),
}
"""The submodules of a decoder layer whose output is the MLP site; the first that exists is the site."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """One place that is scaled: the last dimension of a module's input or output, in equal ``groups``."""

    module: nn.Module
    side: Literal["input", "output"]
    groups: int


def text_decoder(model: ScaledModel) -> nn.Module:
    """The module of a Hugging Face model that holds the language model's ``layers``.

    Raises:
        UserError: there is none where known families have it.
    """
    for path in DECODER_PATHS:
        try:
            module: nn.Module = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(getattr(module, "layers", None), nn.ModuleList):
            return module
    known = ", ".join(path or "the model itself" for path in DECODER_PATHS)
    raise UserError(
        f"cannot find the decoder layers of {type(model).__name__}; looked for 'layers' in {known}"
    )


def decoder_layers(model: ScaledModel) -> list[nn.Module]:
    """The decoder layers of a Hugging Face model, in order.

    Raises:
        UserError: they are not where known families have them.
    """
    layers = text_decoder(model).layers
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def head_count(model: ScaledModel) -> int:
    """H, the number of query heads in the language model's config.

    Raises:
        UserError: it names none.
    """
    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UserError(
            f"the config of {type(model).__name__} names no num_attention_heads: load a model with a decoder"
        )
    return heads


def attention_site(layer: nn.Module, heads: int, name: str) -> Site:
    """The input of ``o_proj``, one group per query head.

    Raises:
        UserError: the layer has no ``self_attn.o_proj``, or its columns don't divide into heads.
    """
    o_proj = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    width = getattr(o_proj, "in_features", None)
    if not isinstance(o_proj, nn.Module) or not isinstance(width, int):
        raise UserError(f"{name} has no self_attn.o_proj to scale; leave that layer out of the adapter")
    if width % heads:
        raise UserError(f"{name}.self_attn.o_proj has {width} columns, which {heads} heads do not divide")
    return Site(module=o_proj, side="input", groups=heads)


def head_dim(site: Site) -> int:
    """Columns of one head, of an ``attention_site``."""
    width = site.module.in_features
    assert isinstance(width, int)
    return width // site.groups


def mlp_site_of(layer: nn.Module, name: str) -> MlpSite:
    """Where that layer's MLP scalar belongs: after a norm that follows the MLP, else at its output.

    Raises:
        UserError: the layer has no ``mlp``.
    """
    for site, modules in MLP_MODULES.items():
        if any(isinstance(getattr(layer, module, None), nn.Module) for module in modules):
            return site
    raise UserError(f"{name} has no mlp to scale; leave that layer out of the adapter")


def mlp_site(layer: nn.Module, name: str) -> Site:
    """The MLP site of that layer, a single group; raises as ``mlp_site_of``."""
    modules = MLP_MODULES[mlp_site_of(layer, name)]
    module = next(m for m in (getattr(layer, n, None) for n in modules) if isinstance(m, nn.Module))
    return Site(module=module, side="output", groups=1)
