"""What a base model's ``config.json`` must say, before Hugging Face's classes are made of it.

Those check some values with words of their own, divide by others, and take the rest until weights are read. Here each
wrong one is a sentence that names the file and the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config
from scale_export.core.records import Json

from .checkpoint import Checkpoint

AGAIN = "take that file from the model's own repository again"
PARTS = ("text_config", "vision_config")
"""The configs inside a config; the models of this project have both."""

MOST = 2**31 - 1
MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A whole number; ``several`` takes a list of such numbers too, ``absent`` takes null."""

    least: int = 1
    most: int = MOST
    absent: bool = False
    several: bool = False

    def allows(self, value: Json) -> bool:
        if value is None:
            return self.absent
        if self.several and isinstance(value, list):
            return bool(value) and all(self._is_one(item) for item in value)
        return self._is_one(value)

    def _is_one(self, value: Json) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        number = f"a whole number from {self.least:,} to {self.most:,}"
        return f"{number}{' or a list of such' if self.several else ''}{' or null' if self.absent else ''}"


@dataclass(frozen=True, slots=True)
class Positive:
    """A number above 0."""

    def allows(self, value: Json) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")

    def __str__(self) -> str:
        return "a number above 0"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a tower, counted from 1 or from the end, or a list of such."""

    def allows(self, value: Json) -> bool:
        items = value if isinstance(value, list) else [value]
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in items)
        return whole and bool(items) and value != 0

    def __str__(self) -> str:
        return "the number of a layer from 1, or from −1 backwards, or a list of such"


COUNT, LAYERS, OPTIONAL = Whole(), Whole(most=MOST_LAYERS), Whole(absent=True)
ID = Whole(least=0, absent=True)
RULES: Mapping[str, Whole | Positive | Layer] = {
    "vision_feature_layer": Layer(),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), COUNT),
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "num_channels", "projection_dim", "embed_dim"), COUNT
    ),
    **dict.fromkeys(("spatial_merge_size", "temporal_patch_size", "out_hidden_size", "scale_factor"), COUNT),
    **dict.fromkeys(("num_hidden_layers", "depth"), LAYERS),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window"), OPTIONAL),
    **dict.fromkeys(("image_size", "patch_size"), Whole(several=True)),
    **dict.fromkeys(("image_token_id", "image_token_index"), ID),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), Positive()),
}
"""Key → what it must be, in the config and in its parts, where it stands at all."""

DIVISIBLE = (("num_attention_heads", "num_key_value_heads"),)
"""Pairs of which the first must be a multiple of the second."""

TIMM = frozenset({"timm_wrapper", "timm_backbone"})
"""Vision configs whose modules are those of the library timm."""

TIMM_BY_DEFAULT = frozenset({"perception_lm", "gemma3n", "fast_vlm"})
"""Model types whose tower is timm's where their vision config names no other."""


def read_config(checkpoint: Checkpoint) -> Config:
    """Hugging Face's config of a checkpoint.

    Raises:
        UserError: ``config.json`` has a value that no model has, needs a library that is not supported, or is refused
            by transformers.
    """
    from transformers import AutoConfig

    path = checkpoint.directory / "config.json"
    check_settings(checkpoint.config, path)
    refuse_timm(checkpoint.config, path)
    with refusing(f"{path} is refused by transformers", AGAIN):
        config: Config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
    return config


def check_settings(config: Mapping[str, Json], path: Path) -> None:
    """Refuse values that ``RULES`` don't allow, parts that are no objects and dtypes by no name; raises UserError."""
    for part in PARTS:
        if part in config and not isinstance(config[part], dict):
            raise UserError(
                f"{path} is refused: {part} is {_shown(config[part])}, and must be an object: {AGAIN}"
            )
    for prefix, values in _parts(config):
        if not isinstance(values.get("model_type", ""), str):
            raise _wrong(path, f"{prefix}model_type", values["model_type"], "a word")
        for key, rule in RULES.items():
            if key in values and not rule.allows(values[key]):
                raise _wrong(path, f"{prefix}{key}", values[key], str(rule))
        for whole, part in DIVISIBLE:
            left, right = values.get(whole), values.get(part)
            if isinstance(left, int) and isinstance(right, int) and left % right:
                raise _wrong(path, f"{prefix}{whole}", left, f"a multiple of {part}, which is {right}")
        for key in ("dtype", "torch_dtype"):
            if (value := values.get(key)) is not None:
                _check_dtype(path, f"{prefix}{key}", value)


def refuse_timm(config: Mapping[str, Json], path: Path) -> None:
    """Refuse models whose vision tower is timm's; raises UserError."""
    vision = config.get("vision_config")
    kind = vision.get("model_type") if isinstance(vision, dict) else None
    by_default = kind is None and config.get("model_type") in TIMM_BY_DEFAULT
    if kind in TIMM or by_default or config.get("use_timm_backbone"):
        raise UserError(
            f"the vision tower that {path} names is of the library timm, whose towers are not supported: choose a "
            f"model whose tower is transformers' own"
        )


def check_shapes(shapes: Iterable[tuple[str, tuple[int, ...]]], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose weights are not those of the model that its config describes.

    Args:
        shapes: of every weight by its module's name, as the config has it.

    Raises:
        UserError: a weight is missing, or has another shape.
    """
    for name, due in shapes:
        found = checkpoint.shape(name)
        if found != due:
            raise UserError(
                f"{checkpoint.directory} does not fit together: by config.json the weight {name} is {list(due)}, and "
                f"the file holds {list(found)}: take config.json and weights from one repository"
            )


def _parts(config: Mapping[str, Json]) -> Iterator[tuple[str, Mapping[str, Json]]]:
    yield "", config
    for part in PARTS:
        if isinstance(values := config.get(part), dict):
            yield f"{part}.", values


def _check_dtype(path: Path, key: str, value: Json) -> None:
    import torch

    if isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype):
        return
    plain = value.removeprefix("torch.") if isinstance(value, str) else ""
    if isinstance(getattr(torch, plain, None), torch.dtype):
        raise UserError(
            f"{path} is refused: {key} is {_shown(value)}, which transformers does not read: write {plain!r} there"
        )
    raise _wrong(path, key, value, "the name of a dtype, such as 'bfloat16'")


def _wrong(path: Path, key: str, value: Json, due: str) -> UserError:
    return UserError(f"{path} is refused: {key} is {_shown(value)}, and must be {due}: {AGAIN}")


def _shown(value: Json) -> str:
    return "null" if value is None else repr(value)[:60]
