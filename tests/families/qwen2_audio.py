"""Qwen2-Audio: sounds of up to a second, whose end the encoder is told."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TEXT, WORDS_KNOWN, TinyFamily, template, tokenizer


def make() -> tuple[Any, Any]:
    words = tokenizer(
        {
            "audio_token": "<|AUDIO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        }
    )
    config = tf.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "initializer_range": 0.2,
        },
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": WORDS_KNOWN},
        audio_token_index=words.audio_token_id,
    )
    extractor = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    mark = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    return config, tf.Qwen2AudioProcessor(extractor, words, chat_template=template("", mark))


TINY = TinyFamily("qwen2_audio", make)
