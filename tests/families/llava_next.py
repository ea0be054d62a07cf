"""LLaVA-NeXT: pictures in patches."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    PIXELS,
    TinyFamily,
    clip,
    image_processor,
    llama,
    template,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    grid = [[24, 48], [48, 24], [48, 48]]
    config = tf.LlavaNextConfig(
        vision_config=clip(),
        text_config=llama(tf.MistralConfig),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=9,
    )
    pictures = image_processor(
        "llava_next",
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 24},
        crop_size=PIXELS,
        image_grid_pinpoints=grid,
    )
    return config, tf.LlavaNextProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


TINY = TinyFamily(
    "llava_next",
    make,
)
