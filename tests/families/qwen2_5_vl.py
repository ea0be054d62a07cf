"""Qwen2.5-VL: positions on three axes, windows in the encoder."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.families.base import TinyFamily
from tests.families.qwen2_vl import KINDS, qwen


def make() -> tuple[Any, Any]:
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 48,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return qwen(tf.Qwen2_5_VLConfig, "Qwen2_5_VLProcessor", encoder)


TINY = TinyFamily("qwen2_5_vl", make, kinds=KINDS, first_position=None)
