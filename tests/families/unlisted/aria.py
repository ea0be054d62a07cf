"""Aria: a language model of experts, a connector whose queries look at the encoder's features."""

from __future__ import annotations

from typing import Any

import transformers as tf
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from tests.families.base import VISION, image_processor, llama, template, tokenizer

SIZE, PATCH, QUERIES = 980, 70, 4
"""Its processor's own size of pictures, and tokens of each."""


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<|img|>"})
    config = tf.AriaConfig(
        vision_config=Idefics3VisionConfig(**VISION | {"image_size": SIZE, "patch_size": PATCH}),
        text_config=llama(tf.AriaTextConfig, moe_num_experts=4),
        projector_patch_to_query_dict={(SIZE // PATCH) ** 2: QUERIES},
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("aria", "AriaImageProcessorPil", max_image_size=SIZE)
    return config, tf.AriaProcessor(
        pictures,
        words,
        size_conversion={SIZE: QUERIES},
        chat_template=template("<|img|>"),
    )
