"""What a package states beside its graphs, held to what the base model and the coefficients say.

Hashes tell whether a package is as its maker left it, and prompts reach few of its statements: a context that is too
long, another end token or other scalars in a side file would pass both. Each statement is worked out anew here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scale_export.core.records import Float32, Json, NotChecked, SideFacts
from scale_export.device.rules import read_rules
from scale_export.model.checkpoint import without_volatile

if TYPE_CHECKING:
    from scale_export.coefficients.file import Coefficients
    from scale_export.model.base import BaseModel
    from scale_export.package.manifest import Manifest, PackageFiles
    from scale_export.plan.record import Plan

CONFIGS = ("config.json", "generation_config.json")
"""Files that a package has from its base: end tokens, and the rules that tokens are chosen by, are among their keys."""
SHOWN = 80
"""Characters of a statement that a sentence quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One thing that a package says, ``found``, and what it must say, ``expected``; both as JSON."""

    name: str
    found: Json
    expected: Json

    @property
    def right(self) -> bool:
        """Whether both are the same JSON."""
        return self._text(self.found) == self._text(self.expected)

    def __str__(self) -> str:
        found, expected = (self._text(value)[:SHOWN] for value in (self.found, self.expected))
        return f"{self.name} is {found}, and must be {expected}"

    @staticmethod
    def _text(value: Json) -> str:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Every statement that was compared, and the files that were not."""

    statements: tuple[Statement, ...]
    not_compared: tuple[NotChecked, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it is right."""
        return bool(self.statements) and not self.wrong

    @property
    def wrong(self) -> tuple[Statement, ...]:
        """Those that are not as they must be."""
        return tuple(statement for statement in self.statements if not statement.right)

    def to_json(self) -> dict[str, object]:
        """As ``verify --json`` prints it."""
        wrong = [str(statement) for statement in self.wrong]
        return {
            "statements": len(self.statements),
            "wrong": wrong,
            "not_compared": [str(found) for found in self.not_compared],
            "passed": self.passed,
        }


def package_statements(files: PackageFiles, plan: Plan) -> Iterator[Statement]:
    """What the manifest and the files of every package say, against the plan made anew from the base model."""
    recorded, base, directory = files.manifest, plan.base, files.directory
    stated: tuple[tuple[str, Json, Json], ...] = (
        ("model_type", recorded.model_type, base.family.model_type),
        ("scope", recorded.scope, plan.coefficients.scope),
        ("context_length", recorded.context_length, plan.context_length),
        ("image_token_id", recorded.image_token_id, base.image_token_id),
        ("size of pictures", *_picture_sizes(recorded, base)),
        ("extras", recorded.extras, base.family.runtime_config(base.config)),
    )
    for name, found, expected in stated:
        yield Statement(name=f"{name} of manifest.json", found=found, expected=expected)
    for name in CONFIGS:
        yield Statement(name=name, found=_config(directory / name), expected=_config(base.directory / name))
    own_ends = sorted(read_rules(directory, base.family.load_processor(directory).tokenizer).end_tokens)
    yield Statement(name="the list of end tokens", found=own_ends, expected=_end_tokens(plan))


def _picture_sizes(recorded: Manifest, base: BaseModel) -> tuple[Json, Json]:
    """The image processor's sizes that a manifest records where pictures are shrunk, and those that it must."""
    own, size = base.own_processor.image_processor.size, base.picture_size
    found: Json = None if recorded.pictures is None else recorded.pictures.model_dump()
    return found, None if size is None else {"base_size": dict(own), "size": dict(size)}


def side_statements(
    side: SideFacts, plan: Plan, scalars: tuple[Float32, Float32] | None
) -> Iterator[Statement]:
    """What a file for the host says; ``scalars`` ``[L, H]`` and ``[L]`` are those it must hold, None for none."""
    told: tuple[tuple[str, Json, Json], ...] = (
        ("context_length", side.context_length, plan.context_length),
        ("image_token_id", side.image_token_id, plan.base.image_token_id),
        ("the list of end tokens", side.end_token_ids, _end_tokens(plan)),
    )
    for name, found, expected in told:
        if found is not None:
            yield Statement(name=f"{name} of {side.file}", found=found, expected=expected)
    held, due = _by_layer(side.scalars), _by_layer(scalars)
    yield Statement(
        name=f"the count of layers with scalars in {side.file}", found=len(held), expected=len(due)
    )
    for layer, (own, trained) in enumerate(zip(held, due, strict=False)):
        yield Statement(name=f"the scalars of layer {layer} in {side.file}", found=own, expected=trained)


def coefficient_statements(own: Coefficients, given: Coefficients) -> Iterator[Statement]:
    """The package's own coefficients against those of a file that its user holds."""
    for name in ("scope", "mlp_site", "num_heads"):
        yield Statement(
            name=f"the coefficients' {name}", found=getattr(own, name), expected=getattr(given, name)
        )
    layers, due = (dict(zip(c.layer_indices, _rows(c), strict=True)) for c in (own, given))
    for layer in sorted(layers.keys() | due.keys()):
        name = f"the scalars of layer {layer}"
        yield Statement(name=name, found=layers.get(layer), expected=due.get(layer))


def _end_tokens(plan: Plan) -> list[int]:
    """The base model's, sorted."""
    return sorted(plan.base.rules.end_tokens)


def _rows(coefficients: Coefficients) -> list[list[float]]:
    """Heads, then the MLP, of every listed layer."""
    pairs = zip(coefficients.head_scale, coefficients.mlp_scale, strict=True)
    return [[*map(float, heads), float(mlp)] for heads, mlp in pairs]


def _by_layer(scalars: tuple[Float32, Float32] | None) -> list[list[float]]:
    """Heads, then the MLP, of every layer."""
    return [] if scalars is None else [[*map(float, h), float(m)] for h, m in zip(*scalars, strict=True)]


def _config(path: Path) -> Json:
    """A config without what changes when a model is saved again; None where there is no such file."""
    if not path.exists():
        return None
    try:
        found: Json = without_volatile(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return "no JSON"
    return found
