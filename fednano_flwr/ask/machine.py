"""What asking takes of the machine that it runs on."""

from __future__ import annotations

from collections.abc import Mapping

from fednano_flwr.config import ConfigError
from fednano_flwr.doctor.versions import check_device


def check_devices(wanted: Mapping[str, str], instead: str) -> None:
    """Refuse devices that PyTorch does not have here, before anything is loaded.

    Args:
        wanted: by the key that names them.
        instead: what to give for a CPU.

    Raises:
        ConfigError: one of them is not there.
    """
    for key, device in wanted.items():
        for finding in check_device(key, device):
            if finding.level == "problem":
                raise ConfigError(f"{finding.what}; give {instead} to use the CPU")
