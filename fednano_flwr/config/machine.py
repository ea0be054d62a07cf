"""What this machine has: CPUs, GPUs, memory, and whether that does for simulated clients."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fednano_flwr.base.version import commit_of
from fednano_flwr.config import ConfigError

CGROUP = Path("/sys/fs/cgroup")
PACKAGES = ("fednano-flwr", "flwr", "torch", "transformers", "peft", "ray", "grpcio", "datasets")


@dataclass(frozen=True)
class Memory:
    """Bytes of a device: in all, and free now."""

    total: int
    free: int


def cpus() -> int:
    """CPUs this process may use: not those beyond its affinity or its container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, min(count, int(_quota() or count)))


def gpus() -> int:
    """CUDA devices that PyTorch sees."""
    import torch

    return torch.cuda.device_count()


def device_memory(device: str, all_gpus: bool = False) -> Memory | None:
    """Memory of a PyTorch device, or of all GPUs; None where it is not here or tells nothing."""
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        return None
    if asked.type == "cpu":
        return main_memory()
    if asked.type != "cuda" or (asked.index or 0) >= torch.cuda.device_count():
        return None
    indices = range(torch.cuda.device_count()) if all_gpus else [asked.index or 0]
    each = [torch.cuda.mem_get_info(index) for index in indices]
    return Memory(sum(total for _, total in each), sum(free for free, _ in each))


def main_memory() -> Memory:
    """The machine's, or its container's where that has less."""
    import psutil

    whole = psutil.virtual_memory()
    try:
        limit, used = (
            int((CGROUP / name).read_text("utf-8")) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no container, or one without a limit
        return Memory(whole.total, whole.available)
    return Memory(min(whole.total, limit), min(whole.available, max(0, limit - used)))


def environment() -> dict[str, Any]:
    """Versions, hardware and commit of this process."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": cpus(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": commit_of(Path(__file__).parent),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def check_resources(clients: int, client_cpus: int, client_gpus: float) -> None:
    """Refuse what Ray could never schedule: it would start and then fail for all clients.

    Raises:
        ConfigError: names the option to change.
    """
    for option, value, least in (("--clients", clients, 1), ("--client-cpus", client_cpus, 1)):
        if value < least:
            raise ConfigError(f"{option} {value}: must be at least {least}")
    if not 0 <= client_gpus < float("inf"):  # NaN is neither
        raise ConfigError(f"--client-gpus {client_gpus}: must be 0 or more, and finite")
    if client_cpus > cpus():
        raise ConfigError(
            f"--client-cpus {client_cpus}: this machine has {cpus()}, so not even one client could "
            f"run; choose {cpus()} or less (clients beyond what fits take turns)"
        )
    if client_gpus > 1 and client_gpus != int(client_gpus):
        raise ConfigError(f"--client-gpus {client_gpus}: a share of one GPU or a whole number")
    if client_gpus > 0 and client_gpus > gpus():
        raise ConfigError(
            f"--client-gpus {client_gpus}: PyTorch sees {gpus()} GPUs here, so not even one client "
            "could run; choose less, or 0 to train on the CPU"
        )


def federation_config(clients: int, client_cpus: int, client_gpus: float) -> str:
    """Flower's `--federation-config`, with no more Ray workers than there are clients.

    Ray starts a worker process for every `client_cpus` CPUs it is given, needed or not.
    """
    given = min(cpus(), clients * client_cpus)
    return (
        f"num-supernodes={clients} client-resources-num-cpus={client_cpus} "
        f"client-resources-num-gpus={float(client_gpus)} init-args-num-cpus={given}"
    )


def _quota() -> float | None:
    """CPUs of the container's quota (cgroup v2, then v1), or None without one."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((CGROUP / "cpu/cpu.cfs_quota_us").read_text("utf-8"))
        period_us = int((CGROUP / "cpu/cpu.cfs_period_us").read_text("utf-8"))
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
