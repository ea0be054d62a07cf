"""Qwen2.5-VL: positions on three axes, windows in the encoder."""

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


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        }
    )
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 48,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT,
            "vocab_size": WORDS_KNOWN,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]},
        },
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
    )
    pictures = image_processor(
        "qwen2_vl",
        "Qwen2VLImageProcessorPil",
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        patch_size=8,
    )
    return config, pictures_only(
        "Qwen2_5_VLProcessor",
        image_processor=pictures,
        tokenizer=words,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


TINY = TinyFamily(
    "qwen2_5_vl",
    make,
    kinds=lambda pictures, answers: {"mm_token_type_ids": pictures.long()},
    first_position=None,
)
