"""InstructBLIP: the Q-Former reads the question."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    PIXELS,
    VISION,
    TinyFamily,
    image_processor,
    llama,
    qformer,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    vision = {key: value for key, value in VISION.items() if key != "initializer_range"}
    config = tf.InstructBlipConfig(
        vision_config=tf.InstructBlipVisionConfig(**vision),
        qformer_config=qformer(tf.InstructBlipQFormerConfig),
        text_config=llama(),
        num_query_tokens=4,
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("blip", "BlipImageProcessorPil", size=PIXELS)
    reader = tokenizer({})
    return config, tf.InstructBlipProcessor(pictures, words, reader, num_query_tokens=4)


TINY = TinyFamily(
    "instructblip",
    make,
    needs_picture=True,
)
