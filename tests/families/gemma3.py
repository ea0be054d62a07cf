"""Gemma 3: a picture's tokens see each other, layers with a window."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily, image_processor, llama, siglip, template, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        }
    )
    config = tf.Gemma3Config(
        vision_config=siglip(image_size=32),
        text_config=llama(tf.Gemma3TextConfig, head_dim=12, num_hidden_layers=3, sliding_window=8),
        image_token_index=words.image_token_id,
        mm_tokens_per_image=4,
    )
    config.text_config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
    pictures = image_processor(
        "gemma3", "Gemma3ImageProcessorPil", size={"height": 32, "width": 32}
    )
    return config, tf.Gemma3Processor(
        pictures, words, image_seq_length=4, chat_template=template("<start_of_image>")
    )


TINY = TinyFamily(
    "gemma3",
    make,
    kinds=lambda pictures, answers: {"token_type_ids": pictures.long()},
    tolerance=1e-5,
)
