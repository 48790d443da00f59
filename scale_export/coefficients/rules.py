"""The fields of a coefficient file (``docs/scale.md``), and the rules that they obey, read or written.

1. No field is unknown, and only those of ``OPTIONAL`` may be left out; the scope is never guessed.
2. Scalars are finite float32: ``head_scale`` ``[nL, H]`` (or one vector per layer where head counts
   differ), ``mlp_scale`` ``[nL]``.
3. ``layer_indices`` is strictly increasing and names at least one layer; each has a weight hash.
4. Hashes are 64 lower-case hex digits; ``training`` holds JSON values only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar, get_args

import numpy as np

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.records import Float32, Json
from scale_export.core.words import MlpSite, Scope

FORMAT = "scale-coefficients"
VERSION = 1
REQUIRED = (
    "format", "version", "scope", "layer_indices", "head_scale", "mlp_scale", "mlp_site", "bound",
    "num_heads", "head_dim", "base_model", "config_sha256", "tensor_sha256", "model_type",
    "transformers_version",
)  # fmt: skip
OPTIONAL: Mapping[str, Json] = {"base_revision": None, "prompt_template_sha256": None, "training": {}}
SAVE_AGAIN = "save the file again with Coefficients.save"

Choice = TypeVar("Choice", bound=str)

_INT_LIMIT = 2**31
_PLAIN_LIMIT = 100_000  # values in ``training``: nested references can spell exponentially many
_PLAIN_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How the trained scalars were bounded: ``tanh`` means s = 1 + r·tanh(a); ``none`` means free."""

    kind: Literal["tanh", "none"] = "tanh"
    r: float | None = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseIdentity:
    """Which base model the scalars belong to, precisely enough to refuse another one.

    ``tensor_sha256`` maps the module name of every touched weight (``model.language_model.layers.3.
    self_attn.o_proj.weight``) to the SHA-256 of its stored bytes, prefixed by dtype and shape.
    """

    base_model: str
    base_revision: str | None
    model_type: str
    config_sha256: str
    tensor_sha256: Mapping[str, str]
    prompt_template_sha256: str | None
    transformers_version: str


class Fields(TypedDict):
    """The fields of a file that is to be written, flat."""

    format: str
    version: int
    scope: Scope
    layer_indices: list[int]
    head_scale: Float32 | list[Float32]
    mlp_scale: Float32
    mlp_site: MlpSite
    bound: dict[str, Json]
    num_heads: int
    head_dim: int
    base_model: str
    base_revision: str | None
    model_type: str
    config_sha256: str
    tensor_sha256: dict[str, str]
    prompt_template_sha256: str | None
    transformers_version: str
    training: dict[str, Json]


class CheckedFields(TypedDict):
    """What ``checked_fields`` gives: the arguments of ``Coefficients``."""

    scope: Scope
    layer_indices: tuple[int, ...]
    head_scale: tuple[Float32, ...]
    mlp_scale: Float32
    mlp_site: MlpSite
    bound: Bound
    num_heads: int
    head_dim: int
    base: BaseIdentity
    training: Mapping[str, Json]


def checked_fields(values: object, source: str) -> CheckedFields:
    """Fields of a file, or of a record, each held to its rule; ``source`` begins every message.

    Raises:
        UserError: a field breaks a rule of this module.
    """
    if not isinstance(values, Mapping) or "format" not in values:
        raise UserError(
            f"{source} has no field 'format', so it is not a coefficient file: make one of another trainer's state "
            "dict with scale-export import, or in Python with scale_export.import_state_dict"
        )
    fields = _Fields(source=source, values=dict([*OPTIONAL.items(), *values.items()]))
    fields.check_names()
    layers, heads = fields.layers(), fields.integer("num_heads", 1)
    return CheckedFields(
        scope=fields.choice("scope", get_args(Scope)),
        layer_indices=layers,
        head_scale=fields.head_scale(len(layers), heads),
        mlp_scale=fields.array("mlp_scale", fields.values["mlp_scale"], (len(layers),)),
        mlp_site=fields.choice("mlp_site", get_args(MlpSite)),
        bound=fields.bound(),
        num_heads=heads,
        head_dim=fields.integer("head_dim", 1),
        base=BaseIdentity(
            base_model=fields.text("base_model"),
            base_revision=fields.optional("base_revision", fields.text),
            model_type=fields.text("model_type"),
            config_sha256=fields.sha256("config_sha256"),
            tensor_sha256=fields.tensor_hashes(layers),
            prompt_template_sha256=fields.optional("prompt_template_sha256", fields.sha256),
            transformers_version=fields.text("transformers_version"),
        ),
        training=fields.training(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields:
    """The fields of one file; every method returns one of them checked, or raises ``UserError``."""

    source: str
    values: Mapping[object, object]

    def refusal(self, name: str, problem: str, way_out: str = SAVE_AGAIN) -> UserError:
        return UserError(f"{self.source}: {name} {problem}; {way_out}")

    def check_names(self) -> None:
        known = (*REQUIRED, *OPTIONAL)
        for name in self.values:
            if not isinstance(name, str) or name not in known:
                near = did_you_mean(name, known) if isinstance(name, str) else ""
                raise self.refusal(_shown(name), f"is not a field of the format{near}", "remove or rename it")
        for name, only in (("format", FORMAT), ("version", VERSION)):
            value = self.values.get(name)
            if type(value) is not type(only) or value != only:
                raise self.refusal(name, f"is not {only!r}", "update scale-export or write the file again")
        if "scope" not in self.values:
            raise self.refusal(
                "scope", "is missing and is never guessed", "add scope 'last' or 'all', as trained"
            )
        missing = [name for name in REQUIRED if name not in self.values]
        if missing:
            raise self.refusal(missing[0], "is missing")

    def choice(self, name: str, known: tuple[Choice, ...]) -> Choice:
        value = self.values[name]
        for choice in known:
            if isinstance(value, str) and value == choice:
                return choice
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise self.refusal(name, f"is {_shown(value)}{near}", f"it must be one of {', '.join(known)}")

    def integer(self, name: str, least: int) -> int:
        value = self.values[name]
        if type(value) is not int or not least <= value < _INT_LIMIT:
            raise self.refusal(name, f"is not an integer from {least}")
        return value

    def text(self, name: str) -> str:
        value = self.values[name]
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.refusal(name, "is not a printable, non-empty string")
        return value

    def sha256(self, name: str) -> str:
        return self._hash(name, self.values[name])

    def optional(self, name: str, read: Callable[[str], str]) -> str | None:
        return None if self.values[name] is None else read(name)

    def _hash(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise self.refusal(name, "is not a SHA-256 of 64 lower-case hex digits")
        return value

    def layers(self) -> tuple[int, ...]:
        value = self.values["layer_indices"]
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.int64:
            value = value.tolist()
        if not isinstance(value, list | tuple) or not value:
            raise self.refusal("layer_indices", "is not a non-empty list of integers")
        if any(type(index) is not int or not 0 <= index < _INT_LIMIT for index in value):
            raise self.refusal("layer_indices", "holds a value that is not a layer number from 0 up")
        if any(after <= before for before, after in itertools.pairwise(value)):
            raise self.refusal(
                "layer_indices", "is not strictly increasing", "list each layer once, in order"
            )
        return tuple(value)

    def head_scale(self, layers: int, heads: int) -> tuple[Float32, ...]:
        value = self.values["head_scale"]
        if not isinstance(value, list | tuple):
            return tuple(self.array("head_scale", value, (layers, heads)))
        if len(value) != layers:
            raise self.refusal("head_scale", f"has {len(value)} rows for {layers} layers")
        return tuple(self.array(f"head_scale[{i}]", row, (-1,)) for i, row in enumerate(value))

    def array(self, name: str, value: object, shape: tuple[int, ...]) -> Float32:
        """A finite float32 array of that shape, −1 standing for any length from 1."""
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise self.refusal(
                name, f"is {kind}, not a float32 tensor", "convert it to float32 and save again"
            )
        fits = value.ndim == len(shape) and all(
            have == want or (want == -1 and have > 0) for have, want in zip(value.shape, shape, strict=True)
        )
        if not fits:
            raise self.refusal(
                name,
                f"has shape {list(value.shape)} where layer_indices and num_heads say {list(shape)}",
                "give one row per listed layer and one scalar per query head",
            )
        if not np.isfinite(value).all():
            raise self.refusal(
                name, "holds NaN or infinity", "train again with a lower learning rate or a bound"
            )
        return np.array(value, np.float32, order="C")

    def bound(self) -> Bound:
        value = self.values["bound"]
        if not isinstance(value, Mapping) or set(value) != {"kind", "r"}:
            raise self.refusal("bound", "is not a record of exactly 'kind' and 'r'")
        kind, r = value["kind"], value["r"]
        if kind == "none" and r is None:
            return Bound(kind="none", r=None)
        if kind == "tanh" and type(r) in (int, float) and 0 < r < _INT_LIMIT:
            return Bound(kind="tanh", r=float(r))
        raise self.refusal("bound", "must be kind 'tanh' with a positive r, or kind 'none' with r None")

    def tensor_hashes(self, layers: tuple[int, ...]) -> dict[str, str]:
        value = self.values["tensor_sha256"]
        if not isinstance(value, Mapping) or not all(isinstance(n, str) and n.isprintable() for n in value):
            raise self.refusal("tensor_sha256", "is not a record of weight names and hashes")
        for layer in layers:
            if not any(f".layers.{layer}." in f".{name}" for name in value):
                raise self.refusal("tensor_sha256", f"has no hash of a weight of layer {layer}")
        return {name: self._hash(f"tensor_sha256[{_shown(name)}]", digest) for name, digest in value.items()}

    def training(self) -> dict[str, Json]:
        value = self.values["training"]
        if not isinstance(value, Mapping):
            raise self.refusal("training", "is not a record")
        try:
            return _plain_record(value, _PLAIN_DEPTH, iter(range(_PLAIN_LIMIT)))
        except ValueError as error:
            raise self.refusal("training", f"holds {error}", "keep JSON values only") from error


def _shown(value: object) -> str:
    """A value in few characters of one line."""
    plain = value is None or isinstance(value, str | int | float)
    return ascii(value)[:80] if plain else f"a {type(value).__name__}"


def _plain_record(value: Mapping[object, object], depth: int, budget: Iterator[int]) -> dict[str, Json]:
    """A record as JSON would give it back; ``ValueError`` says what JSON can't hold."""
    if depth == 0 or next(budget, None) is None:
        raise ValueError("values nested too deep or too many")
    if not all(isinstance(key, str) for key in value):
        raise ValueError("a key that is not a string")
    return {str(_plain(k, depth - 1, budget)): _plain(v, depth - 1, budget) for k, v in value.items()}


def _plain(value: object, depth: int, budget: Iterator[int]) -> Json:
    """Any value, likewise."""
    if isinstance(value, Mapping):
        return _plain_record(value, depth, budget)
    if depth == 0 or next(budget, None) is None:
        raise ValueError("values nested too deep or too many")
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1, budget) for item in value]
    if isinstance(value, str):
        value.encode()
        return str(value)
    if value is None or type(value) is bool or (type(value) is int and abs(value) < 2**63):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise ValueError(f"a value of type {type(value).__name__} that JSON can't hold")
