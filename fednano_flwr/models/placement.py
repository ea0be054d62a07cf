"""Which device each part of a language model is on, where there are several (accelerate's maps)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from transformers import PreTrainedModel

from fednano_flwr.config import ConfigError
from fednano_flwr.models.layers import decoder_layers
from fednano_flwr.models.skeleton import name_of

Places = Mapping[str, torch.device]
"""Devices by the names of modules; "" is the whole."""
HEAD = "lm_head"


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
            device for each part, which may be all of them.
        dtype: in which its weights will be.
        memory: bytes to use of each GPU; None: what is free.

    Raises:
        ConfigError: it does not fit the GPUs, or a given map leaves out a part.
    """
    if isinstance(wanted, str):
        found = _spread(host, wanted, dtype, memory)
    else:
        found = {name: torch.device(device) for name, device in wanted.items()}
        _check_complete(host, found)
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


def _check_complete(host: PreTrainedModel, places: Places) -> None:
    for tensors in (host.named_parameters(), host.named_buffers()):
        for name, _ in tensors:
            try:
                device_of(places, name)
            except KeyError:
                raise ConfigError(f"llm.device-map: no device for {name}") from None


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
            f"there is no room on this machine's GPUs for {outside[0]} and {len(outside) - 1} more "
            "of its parts; use more GPUs, a smaller llm.dtype, or llm.quantization on one GPU"
        )
    return {name: torch.device("cuda", int(device)) for name, device in found.items()}
