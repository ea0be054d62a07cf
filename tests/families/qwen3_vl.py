"""Qwen3-VL: deep features for two layers, positions on three interleaved axes."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily
from tests.families.qwen2_vl import AXES, KINDS, qwen

ENCODER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "initializer_range": 0.1,
}


def make(kind: Any = tf.Qwen3VLConfig, **text: Any) -> tuple[Any, Any]:
    axes = {**AXES, "mrope_interleaved": True}
    layers = {"num_hidden_layers": 3, "head_dim": 12, "rope_parameters": axes}
    return qwen(kind, "Qwen3VLProcessor", ENCODER, **layers, **text)


TINY = TinyFamily("qwen3_vl", make, kinds=KINDS, first_position=None)
