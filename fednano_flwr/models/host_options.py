"""How an LLM half runs, beside device, dtype and quantization: what is asked for, and refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fednano_flwr.config import LLM, ConfigError


@dataclass(frozen=True)
class HostOptions:
    """Attributes have the names of the run config's `llm.*` keys.

    Attributes:
        checkpointing: each decoder layer keeps its input only, and is computed again for the
            backward pass.
        device_map: "" (all on one device), one of transformers' strategies, or a device for each
            part of the language model, by name.
    """

    checkpointing: bool = False
    device_map: str | Mapping[str, str] = ""


AS_IT_IS = HostOptions()


def host_options(llm: LLM) -> HostOptions:
    """Options of a run's config."""
    return HostOptions(llm.checkpointing, llm.device_map)


def check_options(options: HostOptions, device: str, quantization: str) -> None:
    """Refuse options that this machine, or other options, cannot be had with.

    Raises:
        ConfigError: the message says what to change.
    """
    if options.device_map:
        _check_device_map(options.device_map, device, quantization)


def _check_device_map(device_map: str | Mapping[str, str], device: str, quantization: str) -> None:
    if quantization != "none":
        raise ConfigError(
            f"llm.device-map with llm.quantization = {quantization!r}: quantized layers have not "
            "been run on several GPUs; leave one of the two out"
        )
    if not isinstance(device_map, str):
        return
    wanted = f"llm.device-map = {device_map!r}"
    if not torch.cuda.is_available():
        raise ConfigError(f"{wanted}: no GPU on this machine; leave it empty")
    if device != "cuda":
        raise ConfigError(
            f"{wanted} puts the language model on all GPUs, but llm.device is {device!r}; set it "
            'to "cuda", or leave llm.device-map empty'
        )
