"""Which of PyTorch's devices this machine has."""

from __future__ import annotations

import torch

from fednano_flwr.config import ConfigError


def describe_device(key: str, name: str, instead: str = "") -> str:
    """What a device is.

    Args:
        key: names the device in errors.
        instead: what to do for a CPU; by default, to set `key` to it.

    Raises:
        ConfigError: PyTorch has no such device here; after "; " it says what to do.
    """
    wanted, instead = f"{key} = {name!r}", instead or f'set {key} to "cpu"'
    try:
        device = torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'{wanted}: {reason}; use "cpu", "cuda" or "cuda:0"') from None
    if device.type == "cpu":
        return f"PyTorch {torch.__version__}"
    if device.type != "cuda":
        module = getattr(torch, device.type, None)
        if not getattr(module, "is_available", lambda: False)():
            raise ConfigError(
                f"{wanted}: PyTorch {torch.__version__} finds no such device; {instead}"
            )
        return f"PyTorch {torch.__version__}"
    built = torch.version.hip and f"ROCm {torch.version.hip}"
    built = built or (torch.version.cuda and f"CUDA {torch.version.cuda}")
    if built is None:
        raise ConfigError(
            f"{wanted}: PyTorch {torch.__version__} is built without CUDA and ROCm; install a "
            f"PyTorch for this GPU (https://pytorch.org/get-started), or {instead}"
        )
    count, index = torch.cuda.device_count(), device.index or 0
    if not count:
        raise ConfigError(
            f"{wanted}: PyTorch {torch.__version__} for {built} finds no GPU; look whether the "
            f"driver works (nvidia-smi, rocm-smi), or {instead}"
        )
    if index >= count:
        raise ConfigError(f"{wanted}: there are {count} GPUs, from cuda:0; {instead}")
    return f"{torch.cuda.get_device_name(index)}, {built}"
