"""A language model's decoder layers, changed in how they run and not in what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fednano_flwr.config import ConfigError


def decoder_layers(host: PreTrainedModel) -> list[nn.Module]:
    """The layers that a language model stacks, first to last.

    Raises:
        ConfigError: its modules do not say which they are.
    """
    count = host.config.get_text_config().num_hidden_layers
    marked: list[nn.Module] = [
        layer for layer in host.modules() if isinstance(layer, GradientCheckpointingLayer)
    ]
    listed: list[list[nn.Module]] = [
        list(module)
        for name, module in host.named_modules()
        if isinstance(module, nn.ModuleList) and name.endswith("layers")
    ]
    for found in (marked, *listed):
        if len(found) == count:
            return found
    raise ConfigError(
        f"{type(host).__name__}: cannot identify its {count} decoder layers; "
        "unset llm.checkpointing and llm.device-map"
    )


def checkpoint_layers(host: PreTrainedModel) -> None:
    """Let each decoder layer keep its input only, where gradients are recorded.

    transformers' own checkpointing asks for training mode, which would turn dropout on.
    """
    for layer in decoder_layers(host):
        layer.forward = _recomputed(layer.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in a frozen layer is random, so there is no state of that to go back to.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
