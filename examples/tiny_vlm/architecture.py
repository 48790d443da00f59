"""The tiny vision-language model before training: image processor and architecture."""

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
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 64
IMAGE_SIZE = 48
PATCH_SIZE = 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def build_processor() -> LlavaProcessor:
    """48 × 48 pixels scaled to [-1, 1], nine image tokens, the chat template."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(words_of("gridworld"), VOCAB_SIZE),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """CLIP of 96 × 2 layers; Llama of 128 × 4 layers with 8 query heads of 32 over 4 key/value heads."""
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    text = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
    )
