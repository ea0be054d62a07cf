"""PaliGemma: the prompt's tokens see each other."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import PIXELS, TinyFamily, image_processor, llama, siglip, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"})
    config = tf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=48),
        text_config=llama(
            tf.Gemma2Config,
            num_hidden_layers=2,
            head_dim=12,
            sliding_window=16,
            final_logit_softcapping=5.0,
        ),
        image_token_index=words.image_token_id,
        projection_dim=48,
    )
    pictures = image_processor("siglip", "SiglipImageProcessorPil", size=PIXELS)
    pictures.image_seq_length = 9
    return config, tf.PaliGemmaProcessor(pictures, words)


TINY = TinyFamily(
    "paligemma",
    make,
    kinds=lambda pictures, answers: {"token_type_ids": answers.long()},
    first_position=1,
    tolerance=1e-5,
)
