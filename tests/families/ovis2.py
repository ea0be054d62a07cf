"""Ovis2: a picture's features and its marks are rows of the visual table."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    VISION,
    WORDS_KNOWN,
    TinyFamily,
    image_processor,
    llama,
    template,
    tokenizer,
)

MARKS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def make() -> tuple[Any, Any]:
    words = tokenizer({}, ("<image>", "<IMG_ATOM>", *MARKS))
    config = tf.Ovis2Config(
        vision_config=tf.Ovis2VisionConfig(
            **{**VISION, "image_size": 32}, hidden_stride=2, vocab_size=20
        ),
        text_config=llama(tf.Qwen2Config),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(list(MARKS)),
        vocab_size=WORDS_KNOWN,
        hidden_size=48,
    )
    pictures = image_processor(
        "ovis2",
        "Ovis2ImageProcessorPil",
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        max_patches=4,
    )
    return config, tf.Ovis2Processor(
        pictures, words, image_seq_length=4, chat_template=template("<image>")
    )


TINY = TinyFamily("ovis2", make)
