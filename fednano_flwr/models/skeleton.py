"""A model's module tree without weights, and the cut through it."""

from __future__ import annotations

from typing import Any

import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import PretrainedConfig

from fednano_flwr.models.families import FAMILIES


def build(config: PretrainedConfig) -> Any:
    """The whole model with its parameters on the meta device, where they take no memory.

    Buffers that no checkpoint holds (rotary frequencies, embedding scales) are real.
    """
    family = FAMILIES[config.model_type]
    with init_empty_weights(include_buffers=False):
        return getattr(transformers, family.architecture)(config)


def drop_language(whole: Any) -> nn.Embedding:
    """Take language model and head out of the tree; returns the token embeddings."""
    embeddings = whole.get_input_embeddings()
    _remove(whole, FAMILIES[whole.config.model_type].language)
    if hasattr(whole, "lm_head"):
        _remove(whole, "lm_head")
    return embeddings


def drop_vision(whole: Any) -> None:
    """Take everything out of the tree but the language model and the head."""
    owner_path, _, leaf = FAMILIES[whole.config.model_type].language.rpartition(".")
    owner = whole.get_submodule(owner_path)
    for name in [name for name, _ in owner.named_children()]:
        if name not in (leaf, "lm_head"):
            delattr(owner, name)
    for name in [name for name, _ in owner.named_parameters(recurse=False)]:
        delattr(owner, name)


def name_of(whole: nn.Module, module: nn.Module) -> str:
    """Path of `module` in the tree."""
    return next(name for name, other in whole.named_modules() if other is module)


def trim_encoder(config: PretrainedConfig) -> int:
    """Shorten the vision config to the layers whose output the connector takes.

    LLaVA-1.5 takes the output of the second-last layer, so the last one is never used. Only done
    for CLIP, whose intermediate outputs are those of its layers as they are.

    Returns:
        How many layers are gone.
    """
    wanted = getattr(config, "vision_feature_layer", None)
    vision: Any = getattr(config, "vision_config", None)
    if wanted is None or getattr(vision, "model_type", "") != "clip_vision_model":
        return 0
    count = vision.num_hidden_layers
    several = isinstance(wanted, list | tuple)
    # Output 0 is that of the patch embeddings, output k that of layer k.
    outputs = [index % (count + 1) for index in (wanted if several else [wanted])]
    vision.num_hidden_layers = max(outputs)
    config.vision_feature_layer = outputs if several else outputs[0]
    return count - max(outputs)


def _remove(whole: nn.Module, path: str) -> None:
    owner, _, leaf = path.rpartition(".")
    delattr(whole.get_submodule(owner), leaf)
