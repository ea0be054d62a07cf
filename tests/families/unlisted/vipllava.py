"""ViP-LLaVA: features of several layers of its encoder."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import PIXELS, clip, image_processor, llama, template, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.VipLlavaConfig(
        vision_config=clip(),
        text_config=llama(),
        image_token_index=words.image_token_id,
        vision_feature_layers=[-2, -1],
    )
    pictures = image_processor("clip", "CLIPImageProcessorPil", size=PIXELS, crop_size=PIXELS)
    return config, tf.LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
