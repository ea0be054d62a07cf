"""How an LLM half runs, beside device, dtype and quantization: what is asked for, and refused."""

from __future__ import annotations

import importlib.util
import os
import shutil
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
        compile: decoder layers are compiled at their first use.
        device_map: "" (all on one device), one of transformers' strategies, or a device for each
            part of the language model, by name.
        compile_backend: of `torch.compile`.
    """

    checkpointing: bool = False
    compile: bool = False
    device_map: str | Mapping[str, str] = ""
    compile_backend: str = "inductor"


AS_IT_IS = HostOptions()


def host_options(llm: LLM) -> HostOptions:
    """Options of a run's config."""
    return HostOptions(llm.checkpointing, llm.compile, llm.device_map)


def check_options(options: HostOptions, device: str, quantization: str) -> None:
    """Refuse options that this machine, or other options, cannot be had with.

    Raises:
        ConfigError: the message says what to change.
    """
    if options.compile:
        _check_compile(options, device, quantization)
    if options.device_map:
        _check_device_map(options.device_map, device, quantization)


def _check_compile(options: HostOptions, device: str, quantization: str) -> None:
    if quantization != "none":
        raise ConfigError(
            f"llm.compile = true with llm.quantization = {quantization!r}: compiling "
            "bitsandbytes' layers has not been tested; leave one of the two out"
        )
    if options.device_map:
        raise ConfigError(
            "llm.compile = true with llm.device-map: compiled layers have not been run on several "
            "GPUs; leave one of the two out"
        )
    if options.compile_backend != "inductor":
        return
    if device.startswith("cpu"):
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"llm.compile = true: no C++ compiler {compiler} on this machine, which PyTorch "
                "needs to compile for a CPU; install one or leave llm.compile at false"
            )
    elif importlib.util.find_spec("triton") is None:
        raise ConfigError(
            f"llm.compile = true: the package triton, which PyTorch needs to compile for "
            f"{device!r}, is missing here; install it or leave llm.compile at false"
        )


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
