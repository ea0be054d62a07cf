"""TensorBoard: event files in the run's folder, `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes `tensorboard/` in the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_round: int) -> None:
        # What was written of rounds that are done again is not shown.
        purge = first_round if first_round > 0 else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, completed: bool = True) -> None:
        self._writer.close()
