"""The real model's architecture: a small CLIP tower and a connector in front of SmolLM2."""

from __future__ import annotations

from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from fednano_demo.real.processor import IMAGE_TOKENS, PATCH, SIDE

_TRAINED = ("model.vision_tower.", "model.multi_modal_projector.")


def build_model(llm: PreTrainedModel, image_token: int) -> LlavaForConditionalGeneration:
    """A LLaVA around a language model; vision tower and connector have random weights.

    All is in the language model's dtype, and nothing of the language model is copied.
    """
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
        initializer_range=0.05,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=llm.config,
        image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config).to(llm.dtype)
    model.model.language_model = llm.model
    model.lm_head = llm.lm_head
    return model


def trained_state(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Weights of vision tower and connector, by their names in the model."""
    return {n: w for n, w in model.state_dict().items() if n.startswith(_TRAINED)}


def load_trained(model: LlavaForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Set what `trained_state` names.

    Raises:
        ValueError: the state is of another architecture.
    """
    if state.keys() != trained_state(model).keys():
        raise ValueError("the weights are of another vision tower or connector")
    model.load_state_dict(state, strict=False)
