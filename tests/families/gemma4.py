"""Gemma 4: with tokens looked up in each layer, as E2B; and with experts, as 26B-A4B."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    TEXT,
    WORDS_KNOWN,
    TinyFamily,
    image_processor,
    pictures_only,
    template,
    tokenizer,
)

OF_E2B = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": WORDS_KNOWN,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
OF_LARGE = {
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 512,
    "initializer_range": 0.1,
}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


def make(text: dict[str, Any], **parts: Any) -> tuple[Any, Any]:
    words = tokenizer(
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        ("<|video|>",),
    )
    config = tf.Gemma4Config(
        vision_config=VISION,
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "global_head_dim": 16,
            "vocab_size": WORDS_KNOWN,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 5.0,
            **text,
        },
        image_token_id=words.image_token_id,
        audio_token_id=words.audio_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        **parts,
    )
    pictures = image_processor(
        "gemma4", "Gemma4ImageProcessorPil", patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
    )
    return config, pictures_only(
        "Gemma4Processor",
        image_processor=pictures,
        feature_extractor=tf.Gemma4AudioFeatureExtractor(),
        tokenizer=words,
        chat_template=template("<|image|>", "<|audio|>"),
    )


def scale(model: Any) -> None:
    """Let each layer's scale, which starts as 1, count."""
    for layer in model.model.language_model.layers:
        layer.layer_scalar.uniform_(0.5, 1.5)


def kinds(pictures: Any, answers: Any) -> dict[str, Any]:
    return {"mm_token_type_ids": pictures.long()}


SETTINGS: dict[str, Any] = {"kinds": kinds, "tolerance": 1e-5, "adjust": scale}
TINY = (
    TinyFamily("gemma4", lambda: make(OF_E2B, audio_config=AUDIO), **SETTINGS),
    TinyFamily("gemma4", lambda: make(OF_LARGE), variant="large", **SETTINGS),
)
