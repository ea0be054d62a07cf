"""GLM-4V: positions on three axes, for a part of each head."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import (
    TEXT,
    WORDS_KNOWN,
    TinyFamily,
    image_processor,
    pictures_only,
    template,
    tokenizer,
)
from tests.families.qwen2_vl import ENCODER, KINDS, ROTARY

TOKENS = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}
VISION = {
    **ENCODER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "image_size": 32,
}
AXES = {**ROTARY, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}


def glm(config: Any, name: str, chat: Any = template) -> tuple[Any, Any]:
    """A config and a processor of one of the GLM families, which share their parts."""
    words = tokenizer(TOKENS)
    pictures = image_processor(
        name.lower(),
        f"{name}ImageProcessorPil",
        size={"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 64 * 64},  # of two frames
        patch_size=8,
    )
    return config(
        vision_config=tf.Glm4vVisionConfig(**VISION),
        text_config=tf.Glm4vTextConfig(**TEXT, vocab_size=WORDS_KNOWN, rope_parameters=AXES),
        **{f"{token}_id": getattr(words, f"{token}_id") for token in TOKENS},
    ), pictures_only(
        f"{name}Processor",
        image_processor=pictures,
        tokenizer=words,
        chat_template=chat("<|begin_of_image|><|image|><|end_of_image|>"),
    )


def make() -> tuple[Any, Any]:
    return glm(tf.Glm4vConfig, "Glm4v")


TINY = TinyFamily("glm4v", make, kinds=KINDS, first_position=None)
