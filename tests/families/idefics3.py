"""Idefics3, the first SmolVLM: pictures in patches, whose places the prompt writes."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import VISION, TinyFamily, image_processor, llama, template, tokenizer

ROWS = tuple(f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4))


def make() -> tuple[Any, Any]:
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    words = tokenizer({}, (*special, *ROWS))
    config = tf.Idefics3Config(
        vision_config=tf.Idefics3VisionConfig(**{**VISION, "image_size": 32}),
        text_config=llama(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pictures = image_processor(
        "idefics3",
        "Idefics3ImageProcessorPil",
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 32},
    )
    return config, tf.Idefics3Processor(
        pictures, words, image_seq_len=4, chat_template=template("<image>")
    )


TINY = TinyFamily("idefics3", make)
