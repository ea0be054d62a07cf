"""SmolVLM2: pictures in patches."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    VISION,
    TinyFamily,
    image_processor,
    llama,
    pictures_only,
    template,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    rows = tuple(f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4))
    words = tokenizer(
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "video_token": "<video>",
        },
        rows,
    )
    config = tf.SmolVLMConfig(
        vision_config=tf.SmolVLMVisionConfig(**{**VISION, "image_size": 32}),
        text_config=llama(),
        image_token_id=words.image_token_id,
        scale_factor=2,
    )
    pictures = image_processor(
        "smolvlm",
        "SmolVLMImageProcessorPil",
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 32},
    )
    return config, pictures_only(
        "SmolVLMProcessor",
        image_processor=pictures,
        tokenizer=words,
        image_seq_len=4,
        chat_template=template("<image>"),
    )


TINY = TinyFamily(
    "smolvlm",
    make,
)
