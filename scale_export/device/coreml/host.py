"""``runtime.json``: what a host program must know to drive the package's models. Swift reads it as Python does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator

from scale_export.core.borders import first_problem
from scale_export.core.errors import UserError
from scale_export.core.words import ComputeUnits, FoldMode, Scope

FILE = "runtime.json"

Count = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DecoderPart(_Record):
    """One package of a decoder that may be split: its file, and its layers from ``first`` up to ``stop``."""

    file: str
    first: Annotated[int, Field(ge=0)]
    stop: Count


class RotaryTable(_Record):
    """cos(position[axes] · inv_freq) · scale, each frequency twice, is a row of ``cos``."""

    inv_freq: list[float]
    axes: list[int]
    scale: float


class ScalarDefaults(_Record):
    """The trained scalars of a gated decoder: ``attn_scale [L][H]``, ``mlp_scale [L]``."""

    scope: Scope
    attn_scale: list[list[float]]
    mlp_scale: list[float]

    @field_validator("attn_scale")
    @classmethod
    def _refuse_ragged_rows(cls, rows: list[list[float]]) -> list[list[float]]:
        if len({len(row) for row in rows}) > 1:
            raise ValueError("its rows differ in length")
        return rows


class HostConfig(_Record):
    """All of ``runtime.json``.

    Attributes:
        fold: ``two-phase`` packages run a prompt but for its last token by ``prefill``, all else by ``decode``.
        prefill_tokens: T of the function ``prefill``.
        cache_slots: C of the KV cache; a prefill chunk must begin at most at ``cache_slots - prefill_tokens``. In
            two-phase packages, and where tokens see their group, that is anywhere in the context.
        context_length: the most tokens of prompt and answer together.
        rotaries: of each rotary embedding; the first makes ``cos`` and ``sin``, the second ``cos_1`` and ``sin_1``.
        decoder: the parts in order; the ``next_hidden_states`` of each are the ``hidden_states`` of the next.
        scalars: None where they are folded into the weights.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    fold: FoldMode
    compute_units: ComputeUnits
    prefill_tokens: Count
    cache_slots: Count
    context_length: Count
    hidden_size: Count
    head_dim: Count
    vocab_size: Count
    rotaries: Annotated[tuple[RotaryTable, ...], Strict(False), Field(min_length=1)]
    image_token_id: int
    eos_token_ids: list[int]
    decoder: Annotated[tuple[DecoderPart, ...], Strict(False), Field(min_length=1)]
    scalars: ScalarDefaults | None


def table_names(rotary: int) -> tuple[str, str]:
    """The decoder's inputs that hold the cosines and sines of a rotary embedding."""
    return ("cos", "sin") if rotary == 0 else (f"cos_{rotary}", f"sin_{rotary}")


def write_host_config(config: HostConfig, path: Path) -> None:
    """Write the file; the same record gives the same bytes."""
    path.write_text(config.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")


def read_host_config(path: Path) -> HostConfig:
    """Read the file of a verified package.

    Raises:
        UserError: it does not follow the schema.
    """
    try:
        return HostConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is refused {first_problem(error)}: export the package again") from None
