"""What a client keeps on its own disk from round to round, and never sends.

<folder>/<run>/client-<partition>/<name>.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class StateError(RuntimeError):
    """What a client had kept cannot be read."""


class OwnState:
    """Named sets of tensors of one client in one run.

    Args:
        folder: of this client and run; made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was kept last, on the CPU; None where nothing was.

        Raises:
            StateError: the file is damaged.
        """
        file = self._file(name)
        if not file.exists():
            return None
        try:
            return load_file(file)
        except SafetensorError as error:
            raise StateError(f"{file} is damaged ({error}); remove it to start anew") from None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors in place of those kept before: all of them or, if that fails, none."""
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial)
        partial.replace(file)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
