"""What is used of Hugging Face's objects, which come to a type checker without types.

A class of transformers offers far more; what stands here is all that the project reads or calls. Attributes that only
some models have are read by ``getattr`` with a default where they may be missing, and stand here where a family knows
that its own have them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from .records import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class TextConfig(Protocol):
    """The config of a language model."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    rms_norm_eps: float
    max_position_embeddings: int
    hidden_act: str
    rope_parameters: Mapping[str, Any]
    """One rotary embedding's parameters, or those of each kind of layer by its name."""
    use_bidirectional_attention: bool


class VisionConfig(Protocol):
    """The config of a vision tower; which of these there are depends on ``model_type``."""

    model_type: str
    image_size: int
    patch_size: int
    spatial_merge_size: int
    window_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: Sequence[int]


class Config(Protocol):
    """The config of an image-text model; which of the lower ones there are depends on ``model_type``."""

    model_type: str
    text_config: TextConfig
    vision_config: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int

    vision_feature_layer: int | Sequence[int]
    vision_feature_select_strategy: str
    vision_aspect_ratio: str
    image_grid_pinpoints: Sequence[Sequence[int]]
    spatial_merge_size: int
    downsample_ratio: float

    def get_text_config(self, *, decoder: bool) -> TextConfig: ...


class GenerationConfig(Protocol):
    """How a model generates."""

    eos_token_id: int | list[int] | None

    def to_dict(self) -> dict[str, Any]: ...


class NamedConfig(Protocol):
    """The config of any model of Hugging Face's."""

    @property
    def model_type(self) -> str: ...

    def get_text_config(self, *, decoder: bool) -> object: ...


class ScaledModel(Protocol):
    """What takes scalars: any ``PreTrainedModel`` with a language decoder, a caller's own among them."""

    @property
    def config(self) -> NamedConfig: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


class Model(ScaledModel, Protocol):
    """A ``PreTrainedModel`` that takes pictures and words."""

    generation_config: GenerationConfig
    all_tied_weights_keys: Mapping[str, str]
    """Parameters that share their values: target → source."""
    training: bool
    model: Any
    """The model without its output head; its parts are named as the family names them."""

    @property
    def config(self) -> Config: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, **inputs: object) -> ModelOutput: ...

    def generate(self, **inputs: object) -> GeneratedOutput: ...

    def eval(self) -> nn.Module: ...

    def train(self, mode: bool = True) -> object: ...

    def get_output_embeddings(self) -> nn.Module | None: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(
        self, *, recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]: ...


class ModelOutput(Protocol):
    """What a forward gives: ``[B, T, V]``, or the last positions that were asked for."""

    logits: Tensor
    past_key_values: object
    """The cache that it leaves, to go on from."""


class GeneratedOutput(Protocol):
    """What ``generate`` gives: ``[B, T + new]`` int64, and ``[B, V]`` for each new token, as computed and as ruled."""

    sequences: Tensor
    logits: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]


class EncodedText(Protocol):
    """What a tokenizer gives of one text."""

    input_ids: list[int]


class Tokenizer(Protocol):
    """A tokenizer."""

    pad_token: str | None
    pad_token_id: int | None
    eos_token_id: int | None

    @property
    def all_special_ids(self) -> Sequence[int]: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> EncodedText: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def save_pretrained(self, directory: Path) -> object: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class PictureSize(Protocol):
    """The ``size`` of an image processor: edges by name, as items and as attributes (None where not set)."""

    longest_edge: int | None

    def __init__(self, **edges: int) -> None: ...

    def __iter__(self) -> Iterator[tuple[str, int]]: ...

    def __getitem__(self, edge: str) -> int: ...


class ImageProcessor(Protocol):
    """An image processor; squares of ``merge_size`` × ``merge_size`` patches become a token, where it has that."""

    size: PictureSize
    patch_size: int
    merge_size: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Sequence[float] | float
    image_std: Sequence[float] | float


class Processor(Protocol):
    """Image processor and tokenizer in one; patch and merge size stand here in Pixtral's."""

    tokenizer: Tokenizer
    image_processor: ImageProcessor
    chat_template: str | None
    patch_size: int
    spatial_merge_size: int

    @overload
    def apply_chat_template(
        self, conversation: Sequence[object], *, add_generation_prompt: bool = False
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        conversation: Sequence[object],
        *,
        add_generation_prompt: bool,
        tokenize: Literal[True],
        return_dict: Literal[True],
        return_tensors: Literal["np"],
    ) -> Mapping[str, Array]: ...

    @overload
    def apply_chat_template(
        self,
        conversation: Sequence[object],
        *,
        add_generation_prompt: bool,
        tokenize: Literal[True],
        return_dict: Literal[True],
        return_tensors: Literal["pt"],
        processor_kwargs: Mapping[str, object],
    ) -> Mapping[str, Tensor]: ...

    validate_inputs: Callable[..., None]
    """Raises where pictures and words don't fit; by keywords, ``images`` among them."""


class ProcessorClass(Protocol):
    """A class of processors, or ``AutoProcessor``, which chooses one."""

    def from_pretrained(self, directory: Path, *, trust_remote_code: bool) -> Processor: ...
