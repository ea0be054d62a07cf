"""InternVL: pictures in patches."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    VISION,
    TinyFamily,
    llama,
    pictures_only,
    pixel_tiles,
    template,
    tokenizer,
)


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(
            **{**VISION, "image_size": (32, 32)}, use_qk_norm=True, norm_type="rms_norm"
        ),
        text_config=llama(tf.Qwen2Config),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return config, pictures_only(
        "InternVLProcessor",
        image_processor=pixel_tiles(),
        tokenizer=words,
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>"),
    )


TINY = TinyFamily(
    "internvl",
    make,
)
