"""The demo model's architecture: LLaVA as published, about six thousand times smaller."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from fednano_demo.pictures import CELL, GRID, SIDE
from fednano_demo.words import END, IMAGE, PAD, vocabulary

WIDTH = 128
IMAGE_TOKENS = GRID * GRID
_SPREAD = 0.05  # standard deviation of initial weights


def build_model() -> LlavaForConditionalGeneration:
    """A CLIP tower of 2 layers, a connector and a Llama of 4 layers, with random weights."""
    words = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=CELL,
        projection_dim=96,
        initializer_range=_SPREAD,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=_SPREAD,
        pad_token_id=words[PAD],
        bos_token_id=words[END],
        eos_token_id=words[END],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    config.initializer_range = _SPREAD
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # the fastest at this size
    return model
