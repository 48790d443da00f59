"""Model families: where a vision-language model's parts are, and how images and positions enter.

One file per ``model_type``; its module-level ``FAMILY`` is its registration. What has no file may go the generic
route (``_generic.py``). Nothing here imports torch at module level, since a device needs the image half without it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.records import Array, DecoderSpec

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


GENERIC_ROUTE = (
    "A model type without a row may go the generic route: a vision tower, a projector and a known text model, with "
    "nothing else between them. Modules, weights and the processor's inputs are checked by name before weights are "
    "read, and every export's fold leg runs the portable decoder beside Hugging Face's model; what has no place is "
    "refused by its name. Nothing of it is proved beforehand."
)
"""What ``scale-export families`` says of models without a file."""


class Family(ABC):
    """What the exporter and the runtime must know of one ``model_type``."""

    model_type: str
    generic: bool = False
    """Whether it came by the generic route."""
    position_axes: int = 1
    """How many rows a token's position has: 3 where pictures are placed by time, row and column."""
    patched: bool = False
    """Whether a picture enters as patches, as many as it has, and not as tiles of one size."""
    text_prefix: str = "model.language_model"
    """The module that holds ``layers``, ``norm`` and ``embed_tokens``."""
    takes_text_alone: bool = True
    """Whether its processor prepares a prompt without a picture."""
    prompt_sees_itself: bool = False
    """Whether every token of a prompt sees the others, its last one included; answers are causal all the same."""

    def load_processor(self, directory: Path) -> Any:
        """Hugging Face's processor of a directory, for pictures and words; without remote code and without torch."""
        import transformers

        transformers.logging.set_verbosity_error()
        self.prepare_processor()
        return transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=False)

    def prepare_processor(self) -> None:  # noqa: B027 - most families need nothing
        """Make the family's processor class work where libraries are missing that only its videos need."""

    @abstractmethod
    def decoder_spec(self, config: Any) -> DecoderSpec:
        """The language decoder's shape, from the Hugging Face config. Imports torch."""

    @abstractmethod
    def vision_module(self, model: Any) -> VisionTower:
        """The vision tower with its projector, from a loaded Hugging Face model.

        Takes what ``tower_inputs`` gives by name; returns a dict of named outputs, among them
        ``image_features [tiles or pictures, tokens, D]``.
        """

    def image_token_id(self, config: Any) -> int:
        """The id of the token that stands where image features go."""
        return int(config.image_token_id)

    def runtime_config(self, config: Any) -> dict[str, Any]:
        """JSON values that a device needs of the config; kept in the manifest."""
        return {}

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """The processor's pixels as ``[tiles, 3, height, width]``, in the order that ``pack`` expects."""
        return inputs["pixel_values"]

    def tower_inputs(self, inputs: Mapping[str, Array], runtime: Mapping[str, Any]) -> dict[str, Array]:
        """What the vision tower takes, float32 or int32, tile by tile or picture by picture."""
        return {"pixel_values": self.tiles(inputs)}

    def fitting_size(self, processor: Any, *, side: int | None, tokens: int) -> Mapping[str, int]:
        """Of a patched family: the ``size`` of its image processor that a device and its context can hold.

        Args:
            processor: the model's own; the size of its image processor is never passed.
            side: pictures take at most as many pixels as a square of that side; None for any number.
            tokens: and at most that many tokens.

        Raises:
            UserError: the smallest picture that the image processor makes is larger.
        """
        raise NotImplementedError

    def most_places(self, processor: Any, runtime: Mapping[str, Any]) -> int:
        """Of a patched family: the length of the first axis of one picture's ``tower_inputs``, at the most."""
        raise NotImplementedError

    def pack(
        self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Mapping[str, Any]
    ) -> Array:
        """The tower's outputs as rows ``[image tokens, D]``, in the order of the prompt's image tokens."""
        features = outputs["image_features"]
        return features.reshape(-1, features.shape[-1])

    def deepstack(
        self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Mapping[str, Any]
    ) -> Array | None:
        """What the pictures add to the first layers' outputs, ``[layers, image tokens, D]``; None without."""
        return None

    def positions(self, inputs: Mapping[str, Array], runtime: Mapping[str, Any]) -> NDArray[np.int64]:
        """Position ids of a prompt without padding: token counts ``[1, T]``, or ``[axes, 1, T]``."""
        return np.arange(inputs["input_ids"].shape[1], dtype=np.int64)[None]

    def attention_groups(
        self, inputs: Mapping[str, Array], runtime: Mapping[str, Any]
    ) -> NDArray[np.int64] | None:
        """Which tokens see one another, ``[1, T]``: their group from 0, or −1; None where all are causal."""
        return None


def family_names() -> list[str]:
    """Every supported ``model_type``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def prompt_sees_itself(model_type: str) -> bool:
    """``Family.prompt_sees_itself`` of a ``model_type``; False of one that is not supported."""
    return model_type in family_names() and load_family(model_type).prompt_sees_itself


def proved() -> dict[str, Any]:
    """What the tests measured of every family: ``columns`` (meanings), ``limits`` and ``worst`` errors by column."""
    table: dict[str, Any] = json.loads(Path(__file__).with_name("proved.json").read_text(encoding="utf-8"))
    return table


def resolve_family(model_type: str) -> Family:
    """The family of a base model: its own file, or the generic route where Hugging Face has a model for it.

    Raises:
        UserError: neither.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

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
