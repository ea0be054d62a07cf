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

GRID = [[24, 48], [48, 24], [48, 48]]
SETTINGS = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": template("<image>"),
}


def config(kind: Any, words: Any, **more: Any) -> Any:
    return kind(
        vision_config=clip(),
        text_config=llama(tf.MistralConfig),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=9,
        **more,
    )


def pictures() -> Any:
    return image_processor(
        "llava_next",
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 24},
        crop_size=PIXELS,
        image_grid_pinpoints=GRID,
    )


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    processor = tf.LlavaNextProcessor(pictures(), words, **SETTINGS)
    return config(tf.LlavaNextConfig, words), processor


TINY = TinyFamily(
    "llava_next",
    make,
)
