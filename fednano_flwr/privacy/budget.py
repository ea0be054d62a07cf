"""The privacy budget: the number of noised means that were released, and their ε.

The arithmetic is Flower's accountant (Rényi differential privacy, by `dp-accounting`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)

from fednano_flwr.base.files import append_synced
from fednano_flwr.config import ConfigError

if TYPE_CHECKING:
    from flwr.serverapp import RdpAccountant


def new_accountant(delta: float) -> RdpAccountant:
    """Flower's accountant of releases in which every client is taken to take part.

    Raises:
        ConfigError: the package that it needs is not installed.
    """
    config = PrivacyConfig(
        target_delta=delta,
        population_size=1,  # counts only where sampling is held to amplify, which it is not here
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    from flwr.serverapp import RdpAccountant  # lazy: it loads scipy

    try:
        return RdpAccountant(config)
    except ImportError as error:
        raise ConfigError(
            f"privacy.dp needs pip install 'fednano-flwr[privacy]' ({error.__cause__})"
        ) from None


def epsilon_of(releases: int, noise_multiplier: float, delta: float) -> float:
    """ε at `delta` of so many noised means.

    Raises:
        ConfigError: the package that it needs is not installed.
    """
    accountant = new_accountant(delta)
    if releases:
        accountant.compose(_event(noise_multiplier), releases)
    return accountant.get_epsilon(delta)


class Budget:
    """Counts releases in a file, each before it is made, so that a stopped run has counted all.

    A round that is repeated after a stop is another release; a checkpoint does not reset the count.

    Args:
        file: one JSON object a release; read first where it is there.

    Raises:
        ConfigError: the package that the accountant needs is not installed.
    """

    def __init__(self, noise_multiplier: float, delta: float, file: Path) -> None:
        self.delta = delta
        self._file = file
        self._event = _event(noise_multiplier)
        self._accountant = new_accountant(delta)
        if earlier := _lines(file):
            self._accountant.compose(self._event, earlier)

    @property
    def releases(self) -> int:
        return self._accountant.num_releases

    @property
    def epsilon(self) -> float:
        """Spent so far, at `delta`."""
        return self._accountant.get_epsilon(self.delta)

    def spend(self, release: Mapping[str, float]) -> None:
        """Count one release, on the disk when this returns."""
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        broken = "" if not text or text.endswith("\n") else "\n"
        append_synced(self._file, (broken + json.dumps(dict(release)) + "\n").encode())
        self._accountant.compose(self._event)


def _event(noise_multiplier: float) -> GaussianPrivacyEvent:
    return GaussianPrivacyEvent(noise_multiplier, sample_size=1, population_size=1)


def _lines(file: Path) -> int:
    """Releases in a file; a line that was cut off counts, its release may have been made."""
    if not file.exists():
        return 0
    return sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
