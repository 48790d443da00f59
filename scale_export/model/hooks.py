"""ScAle on a Hugging Face model: forward hooks that do what ``docs/scale.md`` says and nothing else.

This is the reference that every check compares with. The rules that the code cites:

1. A site is multiplied by ``1 + strength·g·(s − 1)``, worked out in float32 and cast to the activations'
   dtype before the multiplication, so that s = 1, g = 0 or strength = 0 leave every bit alone.
2. What is multiplied is said in ``sites.py``: the input of ``o_proj``, per query head, and the MLP's output.
3. Scope ``all``: g = 1 everywhere. Scope ``last``: g = 1 at one position per row of each forward, the last
   that is not padding; 0 elsewhere. Under a KV cache that is the last prompt token, then every generated one.
   Running a grown sequence again without a cache is a different function.
4. Padding is read from the 2-D ``attention_mask`` of the outermost forward: of ``[B, P+T]`` the last T
   columns belong to this forward. Without a mask nothing is padding.
5. A chunked prefill gates its final chunk only: set ``gate_enabled = False`` on the handle for the others,
   or ``gate_position`` per row.

Shapes: B batch, T new tokens, P cached tokens, H query heads, L layers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.huggingface import ScaledModel
from scale_export.core.words import Scope

from .sites import (
    Site,
    attention_site,
    decoder_layers,
    head_count,
    head_dim,
    mlp_site,
    mlp_site_of,
    text_decoder,
)

__all__ = ["ScaleHandle", "ScaleSource", "attach"]


class ScaleSource(Protocol):
    """Scalars for the hooks: fixed ones, or tensors that a trainer differentiates."""

    @property
    def scope(self) -> Scope: ...

    @property
    def layer_indices(self) -> tuple[int, ...]: ...

    def effective(self) -> tuple[Sequence[Tensor], Tensor]:
        """The effective s: one ``[H]`` float32 per listed layer, and ``[nL]`` float32 for the MLPs.

        Asked once at the start of every forward.
        """
        ...


class _PaddingWatch:
    """Remembers the 2-D attention mask of the outermost forward under way (rule 4)."""

    def __init__(self) -> None:
        self._outermost: nn.Module | None = None
        self._mask: Tensor | None = None
        self._unreadable = False

    def enter(self, module: nn.Module, mask: object) -> bool:
        """Note the mask that ``module`` was called with; True if no forward was under way."""
        outermost = self._outermost is None
        if outermost:
            self._outermost, self._unreadable = module, mask is not None
        if self._mask is None and isinstance(mask, Tensor) and mask.ndim == 2:
            self._mask, self._unreadable = mask, False
        return outermost

    def leave(self, module: nn.Module) -> None:
        if module is self._outermost:
            self._outermost = self._mask = None
            self._unreadable = False

    def columns(self, rows: int, tokens: int) -> Tensor | None:
        """The mask of this forward's own tokens, ``[B, T]``; None where nothing is padding."""
        if self._unreadable and tokens > 1:
            raise UserError(
                "the attention mask of this forward is not [B, P+T], so its last token cannot be told from "
                "padding; pass a 2-D mask, or set gate_position on the handle that attach yields"
            )
        if self._mask is None:
            return None
        if self._mask.shape[0] != rows or self._mask.shape[1] < tokens:
            raise UserError(
                f"the attention mask has shape {list(self._mask.shape)} but the forward is [{rows}, {tokens}]"
                f"; it must hold one column per cached and new token"
            )
        return self._mask[:, -tokens:]


@dataclass(slots=True, kw_only=True)
class ScaleHandle:
    """What ``attach`` yields: the controls of an attached adapter. Changes act on the next forward.

    All but ``strength`` concern scope ``last`` alone; scope ``all`` has no gate.

    Attributes:
        strength: 0 is the base model, 1 the adapter, anything between interpolates the scalars.
        gate_enabled: False for every chunk of a chunked prefill but the final one.
        gate_position: int64 ``[B]`` or ``[1]``, the gated position of each row of the next forwards; a
            negative one counts from the end, T or more gates nothing. None reads the attention mask.
        gate_mask: ``[B, T]`` of zeros and ones, the whole gate; goes before the other two.
    """

    model: ScaledModel
    scope: Scope
    strength: float = 1.0
    gate_enabled: bool = True
    gate_position: Tensor | None = None
    gate_mask: Tensor | None = None
    _padding: _PaddingWatch = field(repr=False)

    def gate(self, rows: int, tokens: int, device: torch.device) -> Tensor | None:
        """g of this forward as float32 ``[B, T]``; None means 1 everywhere (rules 3 to 5).

        Raises:
            UserError: the mask says nothing of padding, or no mask or position fits the forward.
        """
        if self.scope == "all":
            return None
        if self.gate_mask is not None:
            if tuple(self.gate_mask.shape) != (rows, tokens):
                raise UserError(
                    f"gate_mask has shape {list(self.gate_mask.shape)} but the forward is [{rows}, {tokens}]"
                    f"; give one value per row and token"
                )
            return self.gate_mask.to(device, torch.float32)
        if not self.gate_enabled:
            return torch.zeros(rows, tokens, device=device)
        columns = torch.arange(tokens, device=device)
        position = self._position(rows, tokens, columns)
        return (columns == position[:, None]).to(torch.float32).expand(rows, tokens)

    def _position(self, rows: int, tokens: int, columns: Tensor) -> Tensor:
        """The gated column of each row, int64 ``[B]`` or ``[1]``; one that is no column gates nothing."""
        if self.gate_position is not None:
            position = self.gate_position.to(columns.device)
            if position.ndim != 1 or len(position) not in (1, rows):
                raise UserError(
                    f"gate_position has shape {list(position.shape)} but the forward has {rows} rows; "
                    f"give [{rows}] or [1]"
                )
            return torch.where(position < 0, position + tokens, position)
        mask = self._padding.columns(rows, tokens)
        if mask is None:
            return columns[-1:]
        return torch.where(mask.to(columns.device) > 0, columns, -1).amax(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fixed:
    """The scalars of a coefficient file as a ``ScaleSource``."""

    scope: Scope
    layer_indices: tuple[int, ...]
    heads: tuple[Tensor, ...]
    mlp: Tensor

    def effective(self) -> tuple[Sequence[Tensor], Tensor]:
        return self.heads, self.mlp


@contextmanager
def attach(model: ScaledModel, coefficients: Coefficients, *, strength: float = 1.0) -> Iterator[ScaleHandle]:
    """Run the model with ScAle inside the ``with`` block; every hook is gone after it, whatever happens.

    The model's weights are not touched. Plain forwards, ``generate`` (greedy, sampling, beams) and batches
    with left or right padding work; a chunked prefill sets ``gate_enabled`` on the handle (rule 5).

    Raises:
        UserError: the coefficients do not fit the model (type, layers, heads, head size, MLP site), or a
            strength that is no finite number.
    """
    fixed = _Fixed(
        scope=coefficients.scope,
        layer_indices=coefficients.layer_indices,
        heads=tuple(torch.tensor(scale, dtype=torch.float32) for scale in coefficients.head_scale),
        mlp=torch.tensor(coefficients.mlp_scale, dtype=torch.float32),
    )
    _check_fit(model, coefficients, fixed)
    with _hooked(model, fixed, strength) as handle:
        yield handle


@contextmanager
def attach_trainable(model: ScaledModel, parameters: ScaleSource) -> Iterator[ScaleHandle]:
    """The same hooks over scalars that may require a gradient.

    A trainer that runs prompt and answer in one forward states the gate itself: ``handle.gate_mask [B, T]``
    with ones at the last prompt token and the answer tokens. Raises as ``attach``.
    """
    with _hooked(model, parameters, 1.0) as handle:
        yield handle


def _check_fit(model: ScaledModel, coefficients: Coefficients, fixed: _Fixed) -> None:
    """What the coefficients claim about their base must hold of this model."""
    found, wanted = model.config.model_type, coefficients.base.model_type
    if found != wanted:
        raise UserError(
            f"the coefficients belong to a {wanted!r} model, this one is {found!r}; load their base model"
        )
    attention, _ = _sites(model, fixed)
    layers = decoder_layers(model)
    for site, index in zip(attention, coefficients.layer_indices, strict=True):
        columns = head_dim(site)
        if columns != coefficients.head_dim:
            raise UserError(
                f"the coefficients are for heads of {coefficients.head_dim} columns, those of decoder layer "
                f"{index} have {columns}; load the base model that they were trained on"
            )
        kind = mlp_site_of(layers[index], f"decoder layer {index}")
        if kind != coefficients.mlp_site:
            raise UserError(
                f"the coefficients scale the MLP at {coefficients.mlp_site!r}, but decoder layer {index} has "
                f"its site at {kind!r}; train or import them again for this model"
            )


def _layer_name(index: int, count: int) -> str:
    if not 0 <= index < count:
        raise UserError(f"the adapter scales decoder layer {index}, but the model has 0 to {count - 1}")
    return f"decoder layer {index}"


def _sites(model: ScaledModel, source: ScaleSource) -> tuple[list[Site], list[Site]]:
    """The attention and the MLP sites of the listed layers, checked against the scalars' shapes."""
    layers, heads = decoder_layers(model), head_count(model)
    head_scales, mlp_scales = source.effective()
    if not len(head_scales) == len(mlp_scales) == len(source.layer_indices):
        raise UserError(
            f"the adapter lists {len(source.layer_indices)} layers but has scalars for {len(head_scales)} "
            f"attentions and {len(mlp_scales)} MLPs; give one of each per layer"
        )
    attention, mlp = [], []
    for scale, index in zip(head_scales, source.layer_indices, strict=True):
        name = _layer_name(index, len(layers))
        if tuple(scale.shape) != (heads,):
            raise UserError(
                f"{name} has {heads} query heads, the adapter has {scale.numel()} head scalars for it; "
                f"load the base model that it was trained on"
            )
        attention.append(attention_site(layers[index], heads, name))
        mlp.append(mlp_site(layers[index], name))
    return attention, mlp


class _Scales:
    """The scalars of the forward under way: asked of the source once, however many sites read them."""

    def __init__(self, source: ScaleSource) -> None:
        self._source = source
        self.refresh()

    def refresh(self) -> None:
        self.heads, self.mlp = self._source.effective()


@contextmanager
def _hooked(model: ScaledModel, source: ScaleSource, strength: float) -> Iterator[ScaleHandle]:
    if not math.isfinite(strength):
        raise UserError(
            f"strength {strength} is not a finite number; give one from 0 (base model) to 1 (ScAle)"
        )
    attention, mlp = _sites(model, source)
    handle = ScaleHandle(model=model, scope=source.scope, strength=strength, _padding=_PaddingWatch())
    scales = _Scales(source)
    with ExitStack() as stack:
        _watch_forwards(model, handle._padding, scales.refresh, stack)
        for row, site in enumerate(attention):
            _scale_site(site, handle, lambda row=row: scales.heads[row], stack)  # type: ignore[misc]
        for row, site in enumerate(mlp):
            _scale_site(site, handle, lambda row=row: scales.mlp[row : row + 1], stack)  # type: ignore[misc]
        yield handle


def _watch_forwards(
    model: ScaledModel, padding: _PaddingWatch, refresh: Callable[[], None], stack: ExitStack
) -> None:
    """Tell ``padding`` of the mask of every module from the model down to its decoder (rule 4)."""
    decoder = text_decoder(model)
    for module in [m for m in model.modules() if any(inner is decoder for inner in m.modules())]:
        signature = inspect.signature(module.forward)

        def enter(
            module: nn.Module,
            args: tuple[object, ...],
            kwargs: dict[str, object],
            signature: inspect.Signature = signature,
        ) -> None:
            given = signature.bind_partial(*args, **kwargs).arguments
            if padding.enter(module, given.get("attention_mask")):
                refresh()

        def leave(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            padding.leave(module)

        stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def _scale_site(site: Site, handle: ScaleHandle, scale: Callable[[], Tensor], stack: ExitStack) -> None:
    """Install the one hook of a site (rule 1)."""

    def scaled(x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise UserError(
                f"cannot scale activations of shape {list(x.shape)}; the adapter needs [B, T, width]"
            )
        delta = handle.strength * (scale().to(x.device, torch.float32) - 1.0)
        gate = handle.gate(x.shape[0], x.shape[1], x.device)
        factor = 1.0 + (delta if gate is None else gate[:, :, None] * delta)
        groups = x.reshape(*x.shape[:-1], site.groups, -1)
        return (groups * factor.to(x.dtype).unsqueeze(-1)).reshape(x.shape)

    if site.side == "input":
        hook = site.module.register_forward_pre_hook(lambda _, args: (scaled(args[0]), *args[1:]))
    else:
        hook = site.module.register_forward_hook(lambda _, __, output: scaled(output))
    stack.callback(hook.remove)
