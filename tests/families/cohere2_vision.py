"""Command A Vision: Cohere 2 with windows, a line's break after each tile.

Its own image processor needs torchvision; InternVL's cuts pictures in the same way.
"""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.aya_vision import cohere2
from tests.families.base import TinyFamily, pixel_tiles, siglip, template, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "image_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        }
    )
    config = tf.Cohere2VisionConfig(
        vision_config=siglip(image_size=32),
        text_config=cohere2(),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=64,
    )
    pictures = pixel_tiles(patch_size=2)
    return config, tf.Cohere2VisionProcessor(
        pictures, words, chat_template=template("<|IMG_PATCH|>")
    )


TINY = TinyFamily("cohere2_vision", make)
