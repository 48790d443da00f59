"""Scalars of other trainers: a plain state dict of tensors becomes coefficients, by patterns that a user states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scale_export.coefficients.file import Coefficients
from scale_export.coefficients.formats import MAX_BYTES, DenseTensors, read_capped, tensors_of_pickle
from scale_export.coefficients.rules import Bound
from scale_export.core.errors import UserError
from scale_export.core.huggingface import ScaledModel
from scale_export.core.records import Float32, Json
from scale_export.core.terminal import printable
from scale_export.core.words import ScalarValues, Scope

from .identity import make_coefficients

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_state_dict"]

PLACE = "{layer}"
SHOWN = 5
"""How many keys a refusal lists."""
MOST_SHOWN = 80
"""How many characters of a key a refusal shows."""


def import_state_dict(
    path: Path | str,
    *,
    head_pattern: str | None,
    mlp_pattern: str | None,
    scope: Scope,
    model: ScaledModel,
    base_dir: Path | str,
    values: ScalarValues | None = None,
    bound: float | None = None,
    training: Mapping[str, Json] | None = None,
) -> Coefficients:
    """Another trainer's plain state dict (``.safetensors``, or a pickle of tensors) as coefficients.

    A pattern is a key with ``{layer}`` for the layer's number, such as ``layers.{layer}.head_scale``; every
    key must match one. A key holds ``[H]`` values for a layer's heads or one for its MLP, in a float dtype of 16 bits
    or more; a site without a key is not scaled (s = 1).

    Args:
        path: the state dict.
        head_pattern: of the heads' keys; None where no head is scaled.
        mlp_pattern: of the MLPs' keys; None where no MLP is scaled.
        scope: which positions the scalars act on.
        model: the Hugging Face model that they were trained on, loaded from ``base_dir``.
        base_dir: its directory.
        values: what the keys hold; None for s, and then values that look like a are refused.
        bound: r, where the keys hold a; 1 where left out.
        training: JSON values to keep with the scalars.

    Raises:
        UserError: a pattern without ``{layer}``, a key that no pattern matches, or scalars that don't fit.
    """
    from .sites import decoder_layers, head_count

    path, r = Path(path), _checked_bound(values, bound)
    state = _state_dict(path)
    heads, mlps = _matching(state, head_pattern), _matching(state, mlp_pattern)
    _check_keys(path, state, (head_pattern, heads), (mlp_pattern, mlps))
    _check_sizes(path, state, heads, head_count(model), "query heads")
    _check_sizes(path, state, mlps, 1, "MLP output")
    _check_layers(path, heads | mlps, len(decoder_layers(model)))
    if values is None:
        _check_effective(path, state)
    elif values == "a":
        state = {name: (1 + r * np.tanh(a)).astype(np.float32) for name, a in state.items()}
    layers = sorted(heads.keys() | mlps.keys())
    unscaled = np.ones(head_count(model), np.float32)
    return make_coefficients(
        model,
        base_dir,
        scope=scope,
        head_scale=[state[heads[layer]] if layer in heads else unscaled for layer in layers],
        mlp_scale=[state[mlps[layer]].item() if layer in mlps else 1.0 for layer in layers],
        layer_indices=layers,
        bound=Bound(kind="tanh", r=r) if values == "a" else None,
        training=training,
    )


def _checked_bound(values: ScalarValues | None, bound: float | None) -> float:
    if values != "a" and bound is not None:
        raise UserError(
            "--bound is r of s = 1 + r·tanh(a), for values that are a: give --values a too, or leave it out"
        )
    r = 1.0 if bound is None else bound
    if not (np.isfinite(r) and r > 0):
        raise UserError(f"--bound {bound} is refused: give r of s = 1 + r·tanh(a), a number above 0")
    return r


def _state_dict(path: Path) -> dict[str, Float32]:
    """Every tensor of a plain state dict, flat, as float32."""
    import torch

    content = read_capped(path, MAX_BYTES)
    raw = (
        _load_safetensors(path, content)
        if path.suffix == ".safetensors"
        else tensors_of_pickle(path, content)
    )
    if isinstance(raw, dict) and "format" in raw and "head_scale" in raw:
        raise UserError(f"{path} is a coefficient file already: give it to fold as it is")
    if not isinstance(raw, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in raw.items()
    ):
        raise UserError(
            f"{path} is not a plain state dict of tensors (such as a whole checkpoint of a trainer): save the "
            f"scalars alone, a tensor for each key"
        )
    taken = DenseTensors(path, len(content), (torch.float16, torch.bfloat16, torch.float32, torch.float64))
    return {name: taken.plain(_short(name), value).float().numpy().reshape(-1) for name, value in raw.items()}


def _load_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
        return tensors
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again") from error


def _short(name: str) -> str:
    """A key as a refusal shows it."""
    shown = printable(name[: MOST_SHOWN + 1])
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"


def _matching(state: Mapping[str, Float32], pattern: str | None) -> dict[int, str]:
    """Layer → key, for the keys that fit the pattern."""
    if pattern is None:
        return {}
    if pattern.count(PLACE) != 1:
        raise UserError(
            f"the pattern {pattern!r} must hold {PLACE} once, where keys have the layer's number; one tensor for all "
            f"layers must be saved as one tensor for each"
        )
    before, after = map(re.escape, pattern.split(PLACE))
    matches = {name: re.fullmatch(f"{before}(0|[1-9][0-9]{{0,8}}){after}", name) for name in state}
    return {int(match[1]): name for name, match in matches.items() if match}


def _check_keys(
    path: Path, state: Mapping[str, Float32], *patterns: tuple[str | None, Mapping[int, str]]
) -> None:
    """Every pattern matches some key, every key matches one pattern."""
    if not state:
        raise UserError(f"{path} holds no tensor: save the scalars into it, a tensor for each key")
    names = sorted(state)
    shown = ", ".join(map(_short, names[:SHOWN])) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
    if all(pattern is None for pattern, _ in patterns):
        raise UserError(
            f"no pattern was given for the keys of {path}, which are {shown}: give --head-pattern or --mlp-pattern"
        )
    for pattern, found in patterns:
        if pattern is not None and not found:
            raise UserError(
                f"no key of {path} matches the pattern {pattern!r}; its keys are {shown}: write the pattern as such a "
                f"key with {PLACE} for the layer's number"
            )
    matched = [set(found.values()) for _, found in patterns]
    if both := sorted(matched[0] & matched[1]):
        raise UserError(f"the key {_short(both[0])!r} of {path} matches both patterns: give each its own")
    if unmatched := sorted(state.keys() - matched[0] - matched[1]):
        raise UserError(
            f"the key {_short(unmatched[0])!r} of {path} matches no pattern, and nothing is left out silently: "
            f"give a pattern that it matches too, or save the scalars without it"
        )


def _check_sizes(
    path: Path, state: Mapping[str, Float32], found: Mapping[int, str], size: int, what: str
) -> None:
    for key in found.values():
        if state[key].size != size:
            raise UserError(
                f"the key {_short(key)!r} of {path} holds {state[key].size} values, and a layer has {size} {what}: "
                f"give one value for each, and the model that the scalars were trained on"
            )


def _check_layers(path: Path, found: Mapping[int, str], layers: int) -> None:
    last = max(found)
    if last >= layers:
        raise UserError(
            f"the key {_short(found[last])!r} of {path} is for layer {last}, and the model's last layer is "
            f"{layers - 1} (they count from 0): give the model that the scalars were trained on, or save keys with "
            f"its numbers"
        )


def _check_effective(path: Path, state: Mapping[str, Float32]) -> None:
    """Refuse values around 0 where s is around 1: they would silence the model."""
    everything = np.concatenate(list(state.values()))
    middle = float(np.median(everything))
    if np.isfinite(middle) and abs(middle) < abs(middle - 1):
        raise UserError(
            f"the values in {path} lie around {middle:.2g}, where an s that changes nothing is 1, so they look like "
            f"the a of s = 1 + r·tanh(a): give --values a with the --bound of the training, or --values s"
        )
