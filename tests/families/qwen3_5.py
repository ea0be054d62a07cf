"""Qwen3.5: layers that keep a state and layers that keep keys and values; three axes."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers.models.auto.tokenization_auto import MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS

from tests.families.base import TinyFamily, thinking
from tests.families.qwen2_vl import AXES, KINDS, qwen

# Its own tokenizer would be built of the words that are saved, and read a digit at a time.
MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard("qwen3_5")
LAYERS = ["linear_attention", "full_attention", "linear_attention"]


def make() -> tuple[Any, Any]:
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 48,
        "num_position_embeddings": 16,
    }
    return qwen(
        tf.Qwen3_5Config,
        "Qwen3VLProcessor",
        encoder,
        thinking,
        num_hidden_layers=len(LAYERS),
        layer_types=LAYERS,
        head_dim=12,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters={**AXES, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5},
    )


def remember(model: Any) -> None:
    """Let states last for some tokens: random ones are forgotten with the next."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.copy_(torch.linspace(0.01, 0.3, len(parameter)).log())


# Its norms and its gated delta rule compute in float32 whatever the dtype.
TINY = TinyFamily(
    "qwen3_5", make, kinds=KINDS, first_position=None, tolerance=1e-5, adjust=remember
)
