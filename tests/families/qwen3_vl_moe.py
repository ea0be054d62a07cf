"""Qwen3-VL with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers as tf

from tests.families import qwen3_vl


def make() -> tuple[Any, Any]:
    return qwen3_vl.make(
        tf.Qwen3VLMoeConfig,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        mlp_only_layers=[1],
    )


TINY = replace(qwen3_vl.TINY, model_type="qwen3_vl_moe", make=make)
