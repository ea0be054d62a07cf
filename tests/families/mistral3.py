"""Mistral 3: Pixtral's encoder, merged patches, attention scaled by position (Ministral 3)."""

from __future__ import annotations

from typing import Any

import transformers as tf

from fednano_flwr.models import processor
from tests.families.base import TinyFamily, image_processor, llama, template, tokenizer

TOKENS = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}


def pixtral(**changes: Any) -> tuple[Any, Any, Any]:
    """A tokenizer, the encoder's config and the processor."""
    words = tokenizer(TOKENS)
    vision = tf.PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        head_dim=16,
        initializer_range=0.1,
    )
    pictures = image_processor("pixtral", "PixtralImageProcessorPil", size={"longest_edge": 64})
    kind = processor._pixtral()
    return (
        words,
        vision,
        kind(pictures, words, patch_size=8, chat_template=template("[IMG]"), **changes),
    )


def make() -> tuple[Any, Any]:
    words, vision, whole = pixtral(spatial_merge_size=2)
    text = llama(tf.Ministral3Config, head_dim=16)
    text.rope_parameters["original_max_position_embeddings"] = 16  # else no prompt is scaled
    config = tf.Mistral3Config(
        vision_config=vision, text_config=text, image_token_index=words.image_token_id
    )
    return config, whole


TINY = TinyFamily("mistral3", make)
