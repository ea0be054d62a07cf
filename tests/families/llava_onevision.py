"""LLaVA-OneVision: pictures in patches."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    PIXELS,
    TinyFamily,
    image_processor,
    llama,
    pictures_only,
    siglip,
    template,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    grid = [[24, 24], [24, 48], [48, 24], [48, 48]]
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=llama(tf.Qwen2Config),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pictures = image_processor(
        "llava_onevision",
        "LlavaOnevisionImageProcessorPil",
        size=PIXELS,
        image_grid_pinpoints=grid,
    )
    return config, pictures_only(
        "LlavaOnevisionProcessor",
        image_processor=pictures,
        tokenizer=words,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )


TINY = TinyFamily(
    "llava_onevision",
    make,
)
