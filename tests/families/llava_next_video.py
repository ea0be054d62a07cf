"""LLaVA-NeXT-Video: LLaVA-NeXT, and a processor whose part for videos comes first."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families import llava_next
from tests.families.base import TinyFamily, pictures_only, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    video = {"video_token_index": words.video_token_id}
    config = llava_next.config(tf.LlavaNextVideoConfig, words, **video)
    parts = {"image_processor": llava_next.pictures(), "tokenizer": words}
    return config, pictures_only("LlavaNextVideoProcessor", **parts, **llava_next.SETTINGS)


TINY = TinyFamily("llava_next_video", make)
