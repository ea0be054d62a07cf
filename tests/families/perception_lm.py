"""PerceptionLM: pictures in tiles, a vision transformer of the package timm, pooled features."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily, llama, pictures_only, template, timm, tokenizer

ENCODER = {
    "img_size": (32, 32),
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "ref_feat_shape": (4, 4),
    "global_pool": "",
    "init_values": 0.1,
    "use_post_transformer_norm": False,
}


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<|image|>", "video_token": "<|video|>"})
    config = tf.PerceptionLMConfig(
        vision_config=timm("vit_pe_core_tiny_patch16_384", model_args=ENCODER),
        text_config=llama(),
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        projector_pooling_ratio=2,
    )
    return config, pictures_only(
        "PerceptionLMProcessor",
        image_processor=tf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer=words,
        patch_size=8,
        pooling_ratio=2,
        chat_template=template("<|image|>"),
    )


TINY = TinyFamily("perception_lm", make)
