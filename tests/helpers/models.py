"""Tiny random vision-language models on disk, complete with processor, for tests to open offline.

Weights are random but far from degenerate: norms differ from one, biases from zero, so that a dropped or
swapped weight shows. Query width (4 heads of 32) differs from the hidden size (64), so that a transposed
``o_proj`` shows too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from scale_export.families import resolve_family

PAD, BOS, EOS, USER, ASSISTANT, IMAGE = SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<image>")
VOCAB_SIZE, CONTEXT = 320, 512
CORPUS = (
    "is the red circle left of the blue square ? yes no",
    "what is above the green star ? the small yellow triangle is below it",
    "how many things are in the picture ? one two three four",
)
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)

TEXT_MODELS = ("llama", "mistral", "ministral", "qwen2", "qwen3")
"""Text models that any family without its own is built on."""

LANGUAGE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 16,
}
"""Nine patches."""

SIZE = {"height": 48, "width": 48}


def make_tokenizer(
    names: Mapping[str, str] | None = None, words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has ids and any ids have a text.

    Args:
        names: attributes beside ``image_token`` by which a processor asks for its words.
        words: more that a processor puts into prompts.
    """
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE, **(names or {})},
        padding_side="left",
        model_max_length=CONTEXT,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(words)}, False)
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that every text config names."""
    return {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a family's random model differs from the others'; called, it builds one.

    Attributes:
        model_type: whose classes Hugging Face's tables name.
        family: its name, where it isn't the model type.
        text: the text model where a call names none.
        own_text: whether the family is tied to one text model, and ``text`` means nothing.
        language, vision, config: fields of its configs; those of ``LANGUAGE`` are known already.
        pictures, processor: arguments of its image processor and of its processor.
        pictures_type: whose image processor published checkpoints name, where it isn't its own.
        names, words: as ``make_tokenizer`` takes them; the config gets the ids of names that it has a field for.
        template: its chat template.
        finish: changes the random weights at the end.
    """

    model_type: str
    family: str | None = None
    text: str = "llama"
    own_text: bool = False
    language: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=lambda: TOWER)
    config: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    pictures_type: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    template: str = CHAT_TEMPLATE
    finish: Callable[[Any], None] | None = None

    def __call__(
        self,
        text: str | None = None,
        *,
        directory: Path,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **language: Any,
    ) -> Any:
        """The model, saved to ``directory`` with its processor; in evaluation mode. ``language``: more fields."""
        config, processor = self.but(language=language).prepared(text)
        model = _randomized(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config, dtype, seed)
        if self.finish:
            self.finish(model)
        for name, value in special_ids(processor.tokenizer).items():
            setattr(model.generation_config, name, value)
        model.save_pretrained(directory)
        processor.save_pretrained(directory)
        return model

    def prepared(self, text: str | None = None) -> tuple[Any, Any]:
        """Hugging Face's config and processor, over ``make_tokenizer``'s tokenizer."""
        processor = self._processor(make_tokenizer(self.names, self.words))
        tokenizer, config_class = processor.tokenizer, CONFIG_MAPPING[self.model_type]
        ids = special_ids(tokenizer)
        fields = {**LANGUAGE, "vocab_size": len(tokenizer), **ids, **self.language}
        for name in ("image_token", *self.names):
            ids[f"{name}_id"] = getattr(tokenizer, f"{name}_id")
        known = {*config_class.attribute_map, *config_class.__dataclass_fields__}
        config = config_class(
            text_config=fields if self.own_text else {**fields, "model_type": text or self.text},
            vision_config=dict(self.vision),
            tie_word_embeddings=fields["tie_word_embeddings"],
            **{name: value for name, value in ids.items() if name in known},
            **self.config,
        )
        return config, processor

    def _processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        names = IMAGE_PROCESSOR_MAPPING_NAMES[self.pictures_type or self.model_type]
        pictures = get_image_processor_class_from_name(names["pil"])
        kind = resolve_family(self.family or self.model_type).processor_class()
        if kind is AutoProcessor:
            named = self.pictures_type if self.family else self.model_type
            kind = processor_class_from_name(PROCESSOR_MAPPING_NAMES[named])
        return kind(
            image_processor=pictures(**self.pictures),
            tokenizer=tokenizer,
            chat_template=self.template,
            **self.processor,
        )

    def but(self, **fields: Mapping[str, Any]) -> Recipe:
        """The same with some entries of some of its mappings changed: ``but(vision={"patch_size": 8})``."""
        return replace(self, **{name: {**getattr(self, name), **new} for name, new in fields.items()})


def _randomized(kind: Any, config: Any, dtype: torch.dtype, seed: int) -> Any:
    """Matrices of standard deviation 1 / √fan_in, embeddings of 1/4, norms around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    model = kind(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "embed" in name and weight.ndim == 2:
            weight.copy_(0.25 * noise)
        elif weight.ndim >= 2:
            weight.copy_(noise * weight[0].numel() ** -0.5)
        elif name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        else:
            weight.copy_(0.1 * noise)
    model.tie_weights()
    # Not model.to: rotary frequencies stay float32, as from_pretrained has them.
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def _centred(model: Any) -> None:
    """Norms that multiply by 1 + w, drawn around one, around zero in their stored form."""
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.weight.data -= 1


def _with_layer_scales(model: Any) -> None:
    """InternVL's layer scales near one, its position embeddings not small."""
    for name, weight in model.model.vision_tower.named_parameters():
        if "lambda" in name:
            weight.add_(1)
        elif name.endswith("position_embeddings"):
            weight.mul_(8)


CLIP_TOWER = {**TOWER, "projection_dim": 32}
CLIP_PICTURES = {"size": {"shortest_edge": 48}, "crop_size": SIZE}
LLAVA_PROCESSOR = {
    "patch_size": 16,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
GRID_PINPOINTS = [[48, 96], [96, 48], [96, 96]]
"""LLaVA-NeXT's and LLaVA-OneVision's tiles: up to 2 × 2 beside the overview."""

MAX_TILES = "anyres_max_2"
"""LLaVA-OneVision's, so that a 2 × 2 grid is shrunk and 1 × 2 is not."""

INTERNVL_SIDE = 32
"""16 patches a tile, 4 rows after the pixel shuffle, up to 4 tiles and the whole picture."""

SMOLVLM_TILE, SMOLVLM_SCALE = 24, 3
"""36 patches a tile, 4 rows after the pixel shuffle; up to 2 × 2 tiles and the whole picture."""

SIGLIP_TOWER = {**TOWER, "vision_use_head": False}
GEMMA_WINDOW = 6
"""Of Gemma 3's local layers: fewer tokens than a picture has."""

GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
"""Global layers stretched as in Gemma 3's larger models, local ones not; far apart on short prompts too."""

GEMMA = {"num_hidden_layers": 4, "tie_word_embeddings": True}

QWEN_PATCH, QWEN_TOKEN = 4, 8
"""Pixels of a patch's side and of a token's."""

QWEN_NAMES = {"video_token": "<video>", "vision_start_token": "<vision>", "vision_end_token": "</vision>"}
QWEN_TEMPLATE = CHAT_TEMPLATE.replace(f"'{IMAGE}'", f"'<vision>{IMAGE}</vision>'")
"""Pictures between two words, as in published templates: Hugging Face tells neighbouring ones apart by them."""

QWEN_TOWER = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": QWEN_PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_PICTURES = {
    "patch_size": QWEN_PATCH,
    "merge_size": 2,
    "size": {"shortest_edge": 4 * QWEN_TOKEN**2, "longest_edge": 40 * QWEN_TOKEN**2},
}
"""Pictures of 4 to 40 tokens."""


def _qwen(model_type: str, section: list[int], language: dict[str, Any], vision: dict[str, Any]) -> Recipe:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    return Recipe(
        model_type=model_type,
        own_text=True,
        language={**language, "rope_parameters": rope},
        vision={**QWEN_TOWER, **vision},
        pictures=QWEN_PICTURES,
        names=QWEN_NAMES,
        template=QWEN_TEMPLATE,
    )


def _idefics(model_type: str) -> Recipe:
    places = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
    return Recipe(
        model_type=model_type,
        vision={**TOWER, "image_size": SMOLVLM_TILE, "patch_size": 4},
        config={"scale_factor": SMOLVLM_SCALE},
        pictures={
            "size": {"longest_edge": 2 * SMOLVLM_TILE},
            "max_image_size": {"longest_edge": SMOLVLM_TILE},
        },
        processor={"image_seq_len": 4},
        words=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places),
    )


def _by_name(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.family or recipe.model_type: recipe for recipe in recipes}


PIXTRAL_TOWER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 24,
    "image_size": 48,
    "hidden_act": "silu",
}
PIXTRAL_WORDS = {"image_token": IMAGE, "image_break_token": "<break>", "image_end_token": "<end>"}

FAMILIES = _by_name(
    Recipe(
        model_type="llava",
        vision=CLIP_TOWER,
        config={"image_seq_length": 9},
        pictures=CLIP_PICTURES,
        pictures_type="clip",
        processor=LLAVA_PROCESSOR,
    ),
    Recipe(
        model_type="llava_next",
        vision=CLIP_TOWER,
        config={"image_grid_pinpoints": GRID_PINPOINTS},
        pictures={**CLIP_PICTURES, "image_grid_pinpoints": GRID_PINPOINTS},
        processor=LLAVA_PROCESSOR,
    ),
    Recipe(
        model_type="llava_onevision",
        text="qwen2",
        vision=SIGLIP_TOWER,
        config={"image_grid_pinpoints": GRID_PINPOINTS, "vision_aspect_ratio": MAX_TILES},
        pictures={"size": SIZE, "image_grid_pinpoints": GRID_PINPOINTS},
        processor={
            "num_image_tokens": 9,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": MAX_TILES,
        },
    ),
    Recipe(
        model_type="internvl",
        text="qwen2",
        vision={**TOWER, "image_size": [INTERNVL_SIDE] * 2, "patch_size": [8, 8]},
        config={"image_seq_length": 4},
        pictures={
            "size": {"height": INTERNVL_SIDE, "width": INTERNVL_SIDE},
            "crop_to_patches": True,
            "max_patches": 4,
        },
        processor={"image_seq_length": 4},
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": IMAGE,
            "video_token": "<video>",
        },
        finish=_with_layer_scales,
    ),
    _idefics("smolvlm"),
    _idefics("idefics3"),
    Recipe(
        model_type="gemma3",
        own_text=True,
        language={
            **GEMMA,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": GEMMA_WINDOW,
            "query_pre_attn_scalar": 24,
            "rope_parameters": GEMMA_ROPE,
        },
        vision={**SIGLIP_TOWER, "num_hidden_layers": 2, "patch_size": 8},
        config={"mm_tokens_per_image": 9},
        pictures={"size": SIZE},
        processor={"image_seq_length": 9},
        names={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        template=CHAT_TEMPLATE.replace(f"'{IMAGE}'", "'<start_of_image>'"),
        finish=_centred,
    ),
    Recipe(
        model_type="paligemma",
        own_text=True,
        language=GEMMA,
        vision={**SIGLIP_TOWER, "num_hidden_layers": 2},
        config={"projection_dim": 64, "hidden_size": 64},
        pictures={"size": SIZE, "image_seq_length": 9},
        template=CHAT_TEMPLATE.removeprefix("{{ '<s>' }}"),  # its processor puts it behind the pictures
        finish=_centred,
    ),
    _qwen("qwen2_vl", [4, 6, 6], {"hidden_size": 128}, {"embed_dim": 48, "hidden_size": 128, "mlp_ratio": 2}),
    _qwen(
        "qwen2_5_vl",
        [4, 6, 6],
        {"hidden_size": 128},
        {
            "hidden_size": 48,
            "out_hidden_size": 128,
            "intermediate_size": 80,
            "window_size": 3 * QWEN_TOKEN,
            "fullatt_block_indexes": [1],
        },
    ),
    _qwen(
        "qwen3_vl",
        [6, 5, 5],
        {},
        {
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
        },
    ),
    Recipe(
        model_type="mistral3",
        text="mistral",
        vision={**PIXTRAL_TOWER, "patch_size": 4},
        config={"vision_feature_layer": -1, "spatial_merge_size": 2},
        pictures={"size": {"longest_edge": 48}, "patch_size": {"height": 4, "width": 4}},
        processor={"patch_size": 4, "spatial_merge_size": 2, **PIXTRAL_WORDS},
        words=("<break>", "<end>"),
    ),
    Recipe(
        model_type="llava",
        family="llava_pixtral",
        text="mistral",
        vision={**PIXTRAL_TOWER, "patch_size": 8, "model_type": "pixtral"},
        config={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        pictures={"size": {"longest_edge": 48}, "patch_size": {"height": 8, "width": 8}},
        pictures_type="pixtral",
        processor={"patch_size": 8, **PIXTRAL_WORDS},
        words=("<break>", "<end>"),
    ),
    Recipe(model_type="deepseek_vl", pictures={"size": SIZE}, processor={"num_image_tokens": 9}),
)
"""Every family's, by name."""

VIPLLAVA = Recipe(
    model_type="vipllava",
    vision=CLIP_TOWER,
    config={"image_seq_length": 9, "vision_feature_layer": [-2, -3, 1]},
    pictures=CLIP_PICTURES,
    processor=LLAVA_PROCESSOR,
)
"""A model type without a file: three of its tower's layers, a norm, two matrices."""
