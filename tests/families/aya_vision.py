"""Aya Vision: Cohere 2 with windows, and another token in prompts than in ids."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily, llama, pixel_tiles, siglip, template, tokenizer


def cohere2() -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = {"num_hidden_layers": 3, "sliding_window": 8}
    return llama(tf.Cohere2Config, layer_types=kinds, **sizes)


def make() -> tuple[Any, Any]:
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_GLOBAL")
    words = tokenizer({}, ("<image>", *marks, *(f"TILE_{n}" for n in range(1, 4))))
    config = tf.AyaVisionConfig(
        vision_config=siglip(image_size=32),
        text_config=cohere2(),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )
    return config, tf.AyaVisionProcessor(
        pixel_tiles(),
        words,
        patch_size=8,
        downsample_factor=2,
        img_size=32,
        chat_template=template("<image>"),
    )


TINY = TinyFamily("aya_vision", make)
