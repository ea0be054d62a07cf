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

VARIANTS = 64
"""Most forms of a layer that are compiled: with and without gradients, for one sample or more, by
kind of attention. Two kinds pass PyTorch's own limit of 8, past which nothing is compiled."""


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
        f"{type(host).__name__}: its {count} decoder layers are not to be told from its other "
        "modules; leave llm.checkpointing, llm.compile and llm.device-map out"
    )


def checkpoint_layers(host: PreTrainedModel) -> None:
    """Let each decoder layer keep its input only, where gradients are recorded.

    transformers' own checkpointing asks for training mode, which would turn dropout on.
    """
    for layer in decoder_layers(host):
        layer.forward = _recomputed(layer.forward)  # type: ignore[method-assign]


def compile_layers(host: PreTrainedModel, backend: str) -> None:
    """Compile each decoder layer at its first use, for batches of any size.

    Layers of one kind share what is compiled.
    """
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(VARIANTS, settings.recompile_limit)
    for layer in decoder_layers(host):
        layer.forward = torch.compile(  # type: ignore[method-assign]
            layer.forward, dynamic=True, backend=backend
        )


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in a frozen layer is random, so there is no state of that to go back to.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
