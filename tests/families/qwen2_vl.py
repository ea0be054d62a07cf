"""Qwen2-VL: positions on three axes."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    TEXT,
    WORDS_KNOWN,
    Kinds,
    TinyFamily,
    image_processor,
    pictures_only,
    template,
    tokenizer,
)

TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
ENCODER = {"depth": 2, "num_heads": 2, "patch_size": 8}
# Turns that are fast enough for the few positions of a tiny picture to differ on every axis.
ROTARY = {"rope_type": "default", "rope_theta": 10.0}
AXES = {**ROTARY, "mrope_section": [2, 2, 2]}
KINDS: Kinds = lambda pictures, answers: {"mm_token_type_ids": pictures.long()}  # noqa: E731


def qwen(
    config: Any, processor: str, encoder: dict[str, Any], chat: Any = template, **text: Any
) -> tuple[Any, Any]:
    """A config and a processor of one of the Qwen families, which share their tokens."""
    words = tokenizer(TOKENS)
    pictures = image_processor(
        "qwen2_vl",
        "Qwen2VLImageProcessorPil",
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        patch_size=8,
    )
    return config(
        vision_config={**ENCODER, **encoder},
        text_config={**TEXT, "vocab_size": WORDS_KNOWN, "rope_parameters": AXES, **text},
        **{f"{name}_id": getattr(words, f"{name}_id") for name in TOKENS},
    ), pictures_only(
        processor,
        image_processor=pictures,
        tokenizer=words,
        chat_template=chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def make() -> tuple[Any, Any]:
    encoder = {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    return qwen(tf.Qwen2VLConfig, "Qwen2VLProcessor", encoder)


TINY = TinyFamily("qwen2_vl", make, kinds=KINDS, first_position=None)
