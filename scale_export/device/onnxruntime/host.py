"""``runtime.json`` of an ONNX Runtime package: what a host in any language must know to run it (``docs/runtime.md``).

Where it states what Core ML's file of that name states, it does so by the same keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict, ValidationError

from scale_export.core.borders import first_problem
from scale_export.core.errors import UserError
from scale_export.core.records import Float32
from scale_export.core.words import FloatType, FoldMode, Scope
from scale_export.device.coreml.host import RotaryTable, ScalarDefaults
from scale_export.device.engine import Scalars

FILE: Final = "runtime.json"
ROLE: Final = "runtime"
"""What the manifest's graphs call the file."""
GATE: Final = "gate"
"""The decoder's input that says which positions the scalars act on, ``[B, T]`` float32."""
SCALARS: Final = ("attn_scale", "mlp_scale")
"""The decoder's inputs for the scalars, ``[L, H]`` and ``[L]`` float32."""

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
ImageRule = Literal["fixed", "anyres", "anyres_max", "idefics3", "internvl", "qwen", "pixtral"]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataFile(_Record):
    """One file of a graph's weights, and its bytes."""

    file: str
    size: Size


class GraphFile(_Record):
    """One graph, its bytes, and the files that hold its weights."""

    file: str
    size: Size
    data: Annotated[tuple[DataFile, ...], Strict(False)]


class KeyValueFacts(_Record):
    """Dtype and shape of one layer's keys and of its values; words stand for what is free."""

    dtype: FloatType
    shape: Annotated[tuple[str | int, ...], Strict(False)]


class Turn(_Record):
    """What stands before and after the question in a prompt of one turn."""

    prefix: str
    suffix: str


class Prompt(_Record):
    """A prompt of one turn as text, for hosts without the chat template.

    Tokenized without adding special tokens, prefix, question and suffix give the processor's token ids.

    Attributes:
        with_image: for one picture, whose tokens stand in the prefix; None where their number depends on the picture.
        without_image: None where the model takes no prompt without one.
    """

    add_special_tokens: Literal[False] = False
    with_image: Turn | None
    without_image: Turn | None


class Resize(_Record):
    """The size that pictures are brought to, in the image processor's own words, and the filter by Pillow's name."""

    size: dict[str, Size]
    filter: Filter


class Normalize(_Record):
    """Mean and standard deviation of each channel, after the rescaling."""

    mean: Annotated[tuple[float, ...], Strict(False)]
    std: Annotated[tuple[float, ...], Strict(False)]


class ImageFacts(_Record):
    """How a picture becomes pixel values; a step that is None does not run.

    Attributes:
        processor: the image processor's class in transformers.
        rule: how pictures are cut; None for a processor whose rule has no name here, which a host must refuse.
        rescale: what 8-bit levels are multiplied by.
        pad, tiles, patches: the processor's own settings, by its own names.
        tokens: image tokens of one picture; None where it depends on the picture.
    """

    processor: str
    rule: ImageRule | None
    convert_rgb: bool
    resize: Resize | None
    crop: dict[str, Size] | None
    rescale: float | None
    normalize: Normalize | None
    pad: dict[str, JsonValue] | None
    tiles: dict[str, JsonValue] | None
    patches: dict[str, JsonValue] | None
    tokens: Count | None


class RuntimeConfig(_Record):
    """All of ``runtime.json``.

    Attributes:
        scope: which tokens the host gates; see ``docs/runtime.md``.
        scalars: the trained ones; None where they are folded into the weights.
        graphs: role → the graph to load.
        generation: the rules that act beside end tokens, by transformers' names.
    """

    schema_: Literal[2] = Field(default=2, alias="schema")
    backend: Literal["onnxruntime"] = "onnxruntime"
    model_type: str
    fold: FoldMode
    scope: Scope
    context_length: Count
    hidden_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    activations: FloatType
    position_axes: Count
    kv: KeyValueFacts
    rotaries: Annotated[tuple[RotaryTable, ...], Strict(False), Field(min_length=1)]
    scalars: ScalarDefaults | None
    graphs: dict[str, GraphFile]
    eos_token_ids: list[int]
    generation: dict[str, JsonValue]
    image_token_id: Size
    prompt: Prompt
    image: ImageFacts

    def trained(self) -> tuple[Float32, Float32] | None:
        """The trained scalars as arrays, ``[L, H]`` and ``[L]``."""
        if self.scalars is None:
            return None
        return np.array(self.scalars.attn_scale, np.float32), np.array(self.scalars.mlp_scale, np.float32)

    def defaults(self) -> Scalars | None:
        """What a decoder is fed where nobody says otherwise."""
        trained = self.trained()
        return None if trained is None else Scalars(attn=trained[0], mlp=trained[1])


def write_runtime_config(config: RuntimeConfig, path: Path) -> None:
    """Write the file; the same record gives the same bytes."""
    path.write_text(config.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")


def read_runtime_config(path: Path) -> RuntimeConfig:
    """Read the file of a verified package.

    Raises:
        UserError: it does not follow the schema.
    """
    try:
        return RuntimeConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is refused {first_problem(error)}: export the package again") from None
