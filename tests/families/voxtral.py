"""Voxtral: pieces of a second with ten tokens each; a tokenizer in Mistral's own file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import transformers as tf

from fednano_flwr.models.families.voxtral import FAMILY, TOKENIZER
from tests.families.base import TEXT, TinyFamily

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?"
    r"[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""By which Mistral's tokenizers split a text."""
SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    11: "<pad>",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
}
JOINED = (b" w", b" a", b" t", b"th", b"er", b"on", b"in")


def tekken() -> dict[str, Any]:
    """As a checkpoint's file of the same kind: each byte is a token, and some pairs are."""
    pieces = [bytes([byte]) for byte in range(256)] + list(JOINED)
    special = [SPECIAL.get(rank, f"<SPECIAL_{rank}>") for rank in range(max(SPECIAL) + 1)]
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(special)
        ],
    }


class Processor:
    """Saved as checkpoints have it: settings of the spectrogram, and the tokenizer's file."""

    def save_pretrained(self, folder: Path) -> None:
        extractor = tf.WhisperFeatureExtractor(
            feature_size=16, hop_length=200, chunk_length=1, processor_class="VoxtralProcessor"
        )
        extractor.save_pretrained(folder)
        (folder / TOKENIZER).write_text(json.dumps(tekken()))


def make() -> tuple[Any, Any]:
    config = tf.VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 16,
            "max_source_positions": 40,
            "initializer_range": 0.2,
        },
        text_config={
            **TEXT,
            "model_type": "llama",
            "vocab_size": tekken()["config"]["default_vocab_size"],
            "head_dim": 12,
        },
        audio_token_id=24,
    )
    return config, Processor()


TINY = TinyFamily(FAMILY.model_type, make)
