"""Which base model coefficients belong to: made for a model, checked against a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from scale_export.coefficients.file import Coefficients, coefficient_fields, validated
from scale_export.coefficients.rules import BaseIdentity, Bound
from scale_export.core.errors import UserError
from scale_export.core.huggingface import ScaledModel
from scale_export.core.records import Float32, Json
from scale_export.core.words import Scope

from .checkpoint import Checkpoint
from .plain import check_plain

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["base_directory", "check_base", "make_coefficients"]

TOUCHED_WEIGHTS = ("self_attn.o_proj", "mlp.down_proj")
"""The parts of a decoder layer that scalars fold into; norms after the MLP come beside them."""


def make_coefficients(
    model: ScaledModel,
    base_dir: Path | str,
    *,
    scope: Scope,
    head_scale: Iterable[ArrayLike | Tensor],
    mlp_scale: ArrayLike | Tensor,
    layer_indices: Sequence[int] | None = None,
    bound: Bound | None = None,
    training: Mapping[str, Json] | None = None,
) -> Coefficients:
    """The record of scalars that were trained on ``model``, with every hash of its files filled in.

    Args:
        model: the Hugging Face model, loaded from ``base_dir``.
        base_dir: its directory; one inside the hub's cache is recorded as hub id and revision.
        scope: which positions the scalars act on.
        head_scale: the effective s, ``[nL, H]`` (array, tensor or rows); cast to float32.
        mlp_scale: the effective s, ``[nL]``; cast to float32.
        layer_indices: the decoder layer of each row; all layers, in order, when left out.
        bound: how s was bounded in training; free when left out.
        training: JSON values to keep with the scalars.

    Raises:
        UserError: scalars that don't fit the model, or files that don't hold the model, quantized ones among them.
    """
    from .sites import attention_site, head_count, head_dim, mlp_site_of

    checkpoint, heads = Checkpoint(Path(base_dir)), head_count(model)
    check_plain(checkpoint)
    layers = _named_layers(model, layer_indices)
    sites = {name: attention_site(layer, heads, name) for name, layer in layers.values()}
    name, layer = next(iter(layers.values()))
    made = Coefficients(
        scope=scope,
        layer_indices=tuple(layers),
        head_scale=tuple(_float32(row) for row in head_scale),
        mlp_scale=_float32(mlp_scale),
        mlp_site=mlp_site_of(layer, name),
        bound=bound or Bound(kind="none", r=None),
        num_heads=heads,
        head_dim=head_dim(sites[name]),
        base=_identity(model, checkpoint, tuple(sites)),
        training=training or {},
    )
    checked = validated(coefficient_fields(made), "these scalars")
    check_base(checked, checkpoint)
    for name, site in sites.items():
        _check_loaded_from(checkpoint, f"{name}.self_attn.o_proj.weight", site.module.get_parameter("weight"))
    return checked


def base_directory(coefficients: Coefficients, file: Path | str) -> str:
    """Where the base model is: its directory, if ``base_model`` is a path from ``file``, else the hub id."""
    name = coefficients.base.base_model
    candidate = Path(file).parent / name
    is_path = candidate.is_dir() or name.startswith(".") or Path(name).is_absolute()
    return str(candidate.resolve()) if is_path else name


def check_base(coefficients: Coefficients, checkpoint: Checkpoint) -> None:
    """Refuse a base model that is not the one that the scalars were trained on.

    Checked in this order: model type, layers, heads, config, prompt template, weights.

    Raises:
        UserError: the first that differs, and what to do.
    """
    base, directory = coefficients.base, checkpoint.directory
    way_out = f"give the model that the coefficients name ({base.base_model}), or train them on this one"
    model_type = checkpoint.config.get("model_type")
    if model_type != base.model_type:
        raise UserError(
            f"the coefficients belong to a {base.model_type!r} model, but {directory} is {model_type!r}: "
            f"{way_out}"
        )
    _check_shape(coefficients, checkpoint, way_out)
    if checkpoint.config_sha256() != base.config_sha256:
        raise UserError(f"config.json of {directory} differs from that of the trained model: {way_out}")
    template = base.prompt_template_sha256
    if template is not None and template != prompt_template_sha256(directory):
        raise UserError(
            f"the chat template of {directory} differs from the one that the scalars were trained with: "
            f"restore it, or {way_out}"
        )
    for name, digest in base.tensor_sha256.items():
        if checkpoint.sha256(name) != digest:
            raise UserError(
                f"the weight {name} of {directory} differs from that of the trained model: {way_out}"
            )


def prompt_template_sha256(directory: Path) -> str | None:
    """SHA-256 in hex of a model's chat template, wherever it is stored; None where it has none."""
    template = directory / "chat_template.jinja"
    if template.is_file():
        return hashlib.sha256(template.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        try:
            text = json.loads((directory / name).read_text(encoding="utf-8"))["chat_template"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(text, str):
            return hashlib.sha256(text.encode()).hexdigest()
    return None


def _check_shape(coefficients: Coefficients, checkpoint: Checkpoint, way_out: str) -> None:
    layers, heads = _depth_and_heads(checkpoint)
    last = coefficients.layer_indices[-1]
    if last >= layers:
        raise UserError(
            f"the coefficients scale layer {last}, but the model's last is {layers - 1}: {way_out}"
        )
    if coefficients.num_heads != heads:
        raise UserError(
            f"the coefficients are for {coefficients.num_heads} heads, but the model has {heads}: {way_out}"
        )
    for layer, row in zip(coefficients.layer_indices, coefficients.head_scale, strict=True):
        if row.size != heads:
            raise UserError(
                f"the coefficients hold {row.size} head scalars for layer {layer}, but the model has {heads} "
                f"heads: {way_out}"
            )


def _depth_and_heads(checkpoint: Checkpoint) -> tuple[int, int]:
    """Decoder layers and query heads, by transformers' config class: files leave out what is default."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
        text = config.get_text_config(decoder=True)
        return int(text.num_hidden_layers), int(text.num_attention_heads)
    except Exception as error:  # config classes check values in ways of their own
        raise UserError(
            f"transformers can't read config.json of {checkpoint.directory} ({type(error).__name__}): "
            "give a model that this version supports"
        ) from error


def _named_layers(model: ScaledModel, chosen: Sequence[int] | None) -> dict[int, tuple[str, nn.Module]]:
    """Decoder layer number → (module name, module), in the order chosen."""
    from .sites import decoder_layers, text_decoder

    layers, decoder = decoder_layers(model), text_decoder(model)
    numbers = list(range(len(layers))) if chosen is None else [int(number) for number in chosen]
    in_order = numbers == sorted(set(numbers))
    if not numbers or not in_order or numbers[0] < 0 or numbers[-1] >= len(layers):
        raise UserError(
            f"layer_indices {numbers} must name layers from 0 to {len(layers) - 1}, each once, in order"
        )
    path = next(name for name, module in model.named_modules() if module is decoder)
    return {number: (f"{path}.layers.{number}".removeprefix("."), layers[number]) for number in numbers}


def _identity(model: ScaledModel, checkpoint: Checkpoint, layers: Sequence[str]) -> BaseIdentity:
    """Who the base model is; ``layers`` are the module names of the scaled decoder layers."""
    import transformers

    from .sites import MLP_MODULES

    names = [
        f"{layer}.{part}.{kind}"
        for layer in layers
        for part in (*TOUCHED_WEIGHTS, *MLP_MODULES["post_norm"])
        for kind in ("weight", "bias")
    ]
    base_model, revision = _name_and_revision(checkpoint.directory.resolve())
    return BaseIdentity(
        base_model=base_model,
        base_revision=revision,
        model_type=model.config.model_type,
        config_sha256=checkpoint.config_sha256(),
        tensor_sha256={name: checkpoint.sha256(name) for name in names if name in checkpoint},
        prompt_template_sha256=prompt_template_sha256(checkpoint.directory),
        transformers_version=transformers.__version__,
    )


def _name_and_revision(directory: Path) -> tuple[str, str | None]:
    """Hub id and revision of a directory in the hub's cache, else its path."""
    hub = re.search(r"/models--(?P<id>[^/]+)/snapshots/(?P<revision>[^/]+)$", directory.as_posix())
    if hub is None:
        return directory.as_posix(), None
    return hub["id"].replace("--", "/"), hub["revision"]


def _check_loaded_from(checkpoint: Checkpoint, name: str, weight: Tensor) -> None:
    """The hashes are of files, so the model in memory must hold what they hold."""
    if weight.is_meta:  # of a streamed model, which reads that very file
        return
    stored = checkpoint.tensor(name)
    if stored.shape != weight.shape or not (stored.to(weight.dtype) == weight.detach().cpu()).all():
        raise UserError(
            f"the model's {name} is not what {checkpoint.directory} stores: give the directory that the "
            "model was loaded from, or save the model first"
        )


def _float32(values: ArrayLike | Tensor) -> Float32:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    elif isinstance(values, Sequence):
        values = [float(value) for value in values]
    return np.array(values, np.float32)
