"""FastVLM: convolutions and attention in an encoder of the package timm."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily, image_processor, llama, template, timm, tokenizer

ENCODER = {
    "layers": [1] * 5,
    "embed_dims": [8, 8, 16, 32, 32],
    "mlp_ratios": [2] * 5,
    "layer_scale_init_value": 0.5,
    "inference_mode": True,
}
SIDE = {"height": 128, "width": 128}


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.FastVlmConfig(
        vision_config=timm("fastvit_mci3", hidden_size=64, model_args=ENCODER),
        text_config=llama(tf.Qwen2Config),
        image_token_index=words.image_token_id,
    )
    pictures = image_processor("clip", "CLIPImageProcessorPil", size=SIDE, crop_size=SIDE)
    return config, tf.LlavaProcessor(
        pictures,
        words,
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )


TINY = TinyFamily("fast_vlm", make)
