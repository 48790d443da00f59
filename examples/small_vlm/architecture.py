"""The small vision-language model before training: image processor and architecture."""

from __future__ import annotations

from shared.chat import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    IMAGE,
    MEAN,
    PAD,
    SPECIAL,
    STD,
    build_tokenizer,
    words_of,
)
from transformers import (
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from scale_export.questions.sets import atlas

VOCAB_SIZE = 96
IMAGE_SIZE = atlas.SIDE * atlas.TILE
PATCH_SIZE = atlas.TILE
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
LESSON_WORDS = {"empty", "wall", "corner", "exit"}
"""Words of captions that no question has."""


def build_processor() -> LlavaProcessor:
    """96 × 96 pixels scaled to [-1, 1], 36 image tokens, the chat template."""
    pictures = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(words_of("atlas") | LESSON_WORDS, VOCAB_SIZE),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """SigLIP of 128 × 2 layers; Qwen2 of 256 × 6 layers with 6 query heads of 64 over 3 key/value heads."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
    )
