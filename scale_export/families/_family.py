"""What the exporter and the runtime must know of one family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from scale_export.compat.transformers import errors_only
from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Config, Model, Processor, ProcessorClass
from scale_export.core.records import Array, DecoderSpec
from scale_export.core.watch import PROCESSOR, bounded

from ._processor_files import check_sizes
from ._runtime import Runtime

if TYPE_CHECKING:
    from scale_export.families._towers.tower import VisionTower


PROCESSOR_PARTS = (
    (("processor_config.json", "preprocessor_config.json"), "nothing says how pictures are prepared"),
    (("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"), "nothing says how words become ids"),
)
"""Files of which a processor needs one each, and what is not said without."""

AGAIN = "take the tokenizer's and the processor's files from the model's own repository again"


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

    def load_processor(self, directory: Path) -> Processor:
        """Hugging Face's processor of a directory, for pictures and words; without remote code and without torch.

        Raises:
            UserError: files of it are missing, or transformers refuses them.
        """
        for files, what in PROCESSOR_PARTS:
            if not any((directory / name).exists() for name in files):
                raise UserError(
                    f"{directory} holds no {' and no '.join(files)}, so that {what}: download the model's files again"
                )
        check_sizes(directory)
        with (
            errors_only(),
            refusing(f"the processor's files in {directory} are refused by transformers", AGAIN),
            bounded(f"the processor in {directory}", PROCESSOR),
        ):
            return self.processor_class().from_pretrained(directory, trust_remote_code=False)

    def processor_class(self) -> ProcessorClass:
        """What ``from_pretrained`` is asked of: a class for pictures alone where the family's own can't be built."""
        from transformers import AutoProcessor

        found: ProcessorClass = AutoProcessor
        return found

    @abstractmethod
    def decoder_spec(self, config: Config) -> DecoderSpec:
        """The language decoder's shape, from the Hugging Face config. Imports torch."""

    @abstractmethod
    def vision_module(self, model: Model) -> VisionTower:
        """The vision tower with its projector, from a loaded Hugging Face model.

        Takes what ``tower_inputs`` gives by name; returns a dict of named outputs, among them
        ``image_features [tiles or pictures, tokens, D]``.
        """

    def image_token_id(self, config: Config) -> int:
        """The id of the token that stands where image features go."""
        return int(config.image_token_id)

    def runtime_config(self, config: Config) -> dict[str, JsonValue]:
        """JSON values that a device needs of the config; kept in the manifest."""
        return {}

    def tiles(self, inputs: Mapping[str, Array]) -> Array:
        """The processor's pixels as ``[tiles, 3, height, width]``, in the order that ``pack`` expects."""
        return inputs["pixel_values"]

    def tower_inputs(self, inputs: Mapping[str, Array], runtime: Runtime) -> dict[str, Array]:
        """What the vision tower takes, float32 or int32, tile by tile or picture by picture."""
        return {"pixel_values": self.tiles(inputs)}

    def fitting_size(self, processor: Processor, *, side: int | None, tokens: int) -> Mapping[str, int]:
        """Of a patched family: the ``size`` of its image processor that a device and its context can hold.

        Args:
            processor: the model's own; the size of its image processor is never passed.
            side: pictures take at most as many pixels as a square of that side; None for any number.
            tokens: and at most that many tokens.

        Raises:
            UserError: the smallest picture that the image processor makes is larger.
        """
        raise NotImplementedError

    def most_places(self, processor: Processor, runtime: Runtime) -> int:
        """Of a patched family: the length of the first axis of one picture's ``tower_inputs``, at the most."""
        raise NotImplementedError

    def pack(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime) -> Array:
        """The tower's outputs as rows ``[image tokens, D]``, in the order of the prompt's image tokens."""
        features = outputs["image_features"]
        return features.reshape(-1, features.shape[-1])

    def deepstack(
        self, outputs: Mapping[str, Array], inputs: Mapping[str, Array], runtime: Runtime
    ) -> Array | None:
        """What the pictures add to the first layers' outputs, ``[layers, image tokens, D]``; None without."""
        return None

    def positions(self, inputs: Mapping[str, Array], runtime: Runtime) -> NDArray[np.int64]:
        """Position ids of a prompt without padding: token counts ``[1, T]``, or ``[axes, 1, T]``."""
        return np.arange(inputs["input_ids"].shape[1], dtype=np.int64)[None]

    def attention_groups(self, inputs: Mapping[str, Array], runtime: Runtime) -> NDArray[np.int64] | None:
        """Which tokens see one another, ``[1, T]``: their group from 0, or −1; None where all are causal."""
        return None
