"""BLIP-2: OPT with learned positions."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    PIXELS,
    VISION,
    WORDS_KNOWN,
    TinyFamily,
    image_processor,
    qformer,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**VISION),
        qformer_config=qformer(tf.Blip2QFormerConfig),
        text_config=tf.OPTConfig(
            vocab_size=WORDS_KNOWN,
            hidden_size=48,
            word_embed_proj_dim=48,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            init_std=0.1,
            dropout=0.0,
        ),
        num_query_tokens=4,
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("blip", "BlipImageProcessorPil", size=PIXELS)
    return config, tf.Blip2Processor(pictures, words, num_query_tokens=4)


TINY = TinyFamily(
    "blip-2",
    make,
    first_position=None,
    needs_picture=True,
)
