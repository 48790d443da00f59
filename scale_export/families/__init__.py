"""Model families: where a vision-language model's parts are, and how images and positions enter.

One file per ``model_type``, or per entry of ``BY_TOWER``; its module-level ``FAMILY`` is its registration. What has no
file may go the generic route (``_generic.py``). Nothing here imports torch at module level, since a device needs the
image half without it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from scale_export.core.errors import UserError, did_you_mean

from ._family import Family

BY_TOWER: Mapping[tuple[str, str | None], str] = {("llava", "pixtral"): "llava_pixtral"}
"""Model type and its tower's → the family, where the tower makes it another one than the model type's."""

GENERIC_ROUTE = (
    "A model type without a row may go the generic route: a vision tower, a projector and a known text model, with "
    "nothing else between them. Modules, weights and the processor's inputs are checked by name before weights are "
    "read, and every export's fold leg runs the portable decoder beside Hugging Face's model; what has no place is "
    "refused by its name. Nothing of it is proved beforehand."
)
"""What ``scale-export families`` says of models without a file."""


def family_names() -> list[str]:
    """Every supported ``model_type``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def prompt_sees_itself(model_type: str) -> bool:
    """``Family.prompt_sees_itself`` of a ``model_type``; False of one that is not supported."""
    return model_type in family_names() and load_family(model_type).prompt_sees_itself


class Proved(TypedDict):
    """``columns`` are their meanings, ``limits`` by column, ``worst`` relative errors by family and column."""

    columns: dict[str, str]
    limits: dict[str, float]
    worst: dict[str, dict[str, float]]


def proved() -> Proved:
    """What the tests measured of every family."""
    table: Proved = json.loads(Path(__file__).with_name("proved.json").read_text(encoding="utf-8"))
    return table


def resolve_family(model_type: str, vision_type: str | None = None) -> Family:
    """The family of a base model: its own file, or the generic route where Hugging Face has a model for it.

    Args:
        vision_type: the ``model_type`` of its ``vision_config``, by which some model types are two families.

    Raises:
        UserError: neither.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if (model_type, vision_type) in BY_TOWER:
        return load_family(BY_TOWER[model_type, vision_type])
    return load_family(model_type, generic=model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def load_family(model_type: str, *, generic: bool = False) -> Family:
    """The family of that ``model_type``; where no file has that name and ``generic`` allows it, the generic one.

    Raises:
        UserError: no file here has that name.
    """
    known = family_names()
    if generic and model_type not in known:
        from ._generic import Generic

        return Generic(model_type)
    if model_type not in known:
        raise UserError(
            f"model type {model_type!r} is not supported{did_you_mean(model_type, known)}; "
            f"supported: {', '.join(known)}"
        )
    family: Family = importlib.import_module(f"{__name__}.{model_type}").FAMILY
    return family
