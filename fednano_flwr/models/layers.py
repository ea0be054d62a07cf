"""A language model's decoder layers: computed again for a gradient, and spread over several GPUs.

Neither changes what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fednano_flwr.config import ConfigError
from fednano_flwr.models.skeleton import name_of

Places = Mapping[str, torch.device]
"""Devices by the names of modules, as in accelerate's maps; "" is the whole."""
HEAD = "lm_head"


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


def check_device_map(device_map: str, device: str, quantization: str) -> None:
    """Reject an `llm.device-map` that this machine does not support or that another key excludes.

    Raises:
        ConfigError: the message says what to change.
    """
    wanted = f"llm.device-map = {device_map!r}"
    if quantization != "none":
        raise ConfigError(
            f"{wanted} with llm.quantization = {quantization!r}: quantized layers have not been "
            "run on several GPUs; unset one of the two"
        )
    if not torch.cuda.is_available():
        raise ConfigError(f"{wanted}: no GPU on this machine; leave it empty")
    if device != "cuda":
        raise ConfigError(
            f'{wanted} uses all GPUs, but llm.device is {device!r}; set it to "cuda", or leave '
            "llm.device-map empty"
        )


def place(
    host: PreTrainedModel,
    wanted: str | Mapping[str, str],
    dtype: torch.dtype,
    memory: Mapping[int, int] | None = None,
) -> dict[str, torch.device]:
    """A device for each part of a language model that is still on the meta device.

    No decoder layer is cut, and a head that is the token embeddings goes where they are.

    Args:
        wanted: "auto", "balanced", "balanced_low_0" or "sequential", as in transformers; or a
            device for each part, by name.
        dtype: in which its weights will be.
        memory: bytes to use of each GPU; None: what is free.

    Raises:
        ConfigError: it does not fit the GPUs.
    """
    if isinstance(wanted, str):
        found = _spread(host, wanted, dtype, memory)
    else:
        found = {name: torch.device(device) for name, device in wanted.items()}
    embeddings = host.get_input_embeddings()
    if host.get_submodule(HEAD).weight is embeddings.weight:
        found[HEAD] = device_of(found, name_of(host, embeddings))
    return found


def device_of(places: Places, name: str) -> torch.device:
    """Device of a module, parameter or buffer: that of the smallest named part it belongs to."""
    while name and name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def dispatch(host: PreTrainedModel, places: Places) -> None:
    """Let activations follow the weights, which are where `places` says already.

    Results come back to the device of the inputs.
    """
    entry = device_of(places, name_of(host, host.get_input_embeddings()))
    dispatch_model(host, dict(places), main_device=entry, force_hooks=True)  # type: ignore[arg-type]


def _spread(
    host: PreTrainedModel, strategy: str, dtype: torch.dtype, memory: Mapping[int, int] | None
) -> dict[str, torch.device]:
    whole = sorted({type(layer).__name__ for layer in decoder_layers(host)})
    limits = get_max_memory(None if memory is None else dict(memory))
    if strategy != "sequential":
        limits = get_balanced_memory(
            host,
            None if memory is None else limits,
            no_split_module_classes=whole,
            dtype=dtype,
            low_zero=strategy == "balanced_low_0",
        )
    found = infer_auto_device_map(host, limits, no_split_module_classes=whole, dtype=dtype)
    outside = [name for name, device in found.items() if not isinstance(device, int)]
    if outside:
        size = sum(parameter.numel() for parameter in host.parameters()) * dtype.itemsize
        raise ConfigError(
            f"llm.device-map = {strategy!r}: the language model takes {size / 2**30:.1f} GiB, and "
            f"the GPUs have no room for {len(outside)} of its parts ({outside[0]}); use more GPUs, "
            "a smaller llm.dtype, or llm.quantization on one GPU"
        )
    return {name: torch.device("cuda", int(device)) for name, device in found.items()}
