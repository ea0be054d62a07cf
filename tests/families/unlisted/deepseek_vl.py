"""DeepSeek-VL: a head that is the table of the token embeddings."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import PIXELS, image_processor, llama, siglip, template, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image_placeholder>"})
    config = tf.DeepseekVLConfig(
        vision_config=siglip(), text_config=llama(), image_token_id=words.image_token_id
    )
    pictures = image_processor("deepseek_vl", "DeepseekVLImageProcessorPil", size=PIXELS)
    return config, tf.DeepseekVLProcessor(
        pictures,
        words,
        num_image_tokens=9,
        chat_template=template("<image_placeholder>"),
    )
