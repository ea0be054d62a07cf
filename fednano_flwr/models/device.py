"""PyTorch's devices on this machine, and the threads that it computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fednano_flwr.config import ConfigError


@contextmanager
def threads(count: int = 0) -> Iterator[None]:
    """`count` threads inside the block, 0 for as many as there are; as many as before after it."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def describe_device(key: str, name: str, instead: str = "") -> str:
    """What a device is.

    Args:
        key: names the device in errors.
        instead: what to do for a CPU; by default, to set `key` to it.

    Raises:
        ConfigError: PyTorch has no such device here; after "; " it says what to do.
    """
    wanted, instead = f"{key} = {name!r}", instead or f'set {key} to "cpu"'
    installed = f"PyTorch {torch.__version__}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'{wanted}: {reason}; use "cpu", "cuda" or "cuda:0"') from None
    if device.type == "cpu":
        return installed
    if device.type != "cuda":
        module = getattr(torch, device.type, None)
        if not getattr(module, "is_available", lambda: False)():
            raise ConfigError(f"{wanted}: {installed} finds no such device; {instead}")
        return installed
    built = torch.version.hip and f"ROCm {torch.version.hip}"
    built = built or (torch.version.cuda and f"CUDA {torch.version.cuda}")
    if built is None:
        raise ConfigError(
            f"{wanted}: {installed} is built without CUDA and ROCm; install a PyTorch for this GPU "
            f"(https://pytorch.org/get-started), or {instead}"
        )
    count = torch.cuda.device_count()
    if not count:
        raise ConfigError(
            f"{wanted}: {installed} for {built} finds no GPU; look whether the driver works "
            f"(nvidia-smi, rocm-smi), or {instead}"
        )
    if (device.index or 0) >= count:
        raise ConfigError(f"{wanted}: there are {count} GPUs, from cuda:0; {instead}")
    return f"{torch.cuda.get_device_name(device.index or 0)}, {built}"
