"""What a client keeps on its own disk from round to round, and never sends.

<folder>/<run>/client-<partition>/<name>.<round>.safetensors

A file for each of the last rounds, since a run that is resumed goes back to its last checkpoint,
and so must its clients, whoever of them has already trained for the round after it. A resumed run
has a new id; its messages name the runs that it continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fednano_flwr.base.files import replace_file


class StateError(RuntimeError):
    """What a client had kept cannot be read."""


class OwnState:
    """Named sets of tensors of one client, as one round's training finds and leaves them.

    Args:
        folder: of this client and run; made when something is first kept.
        server_round: training in it starts from what was kept last before it. Who scores a round
            asks for the state of the next.
        earlier: the client's folders of runs that this one continues, each with the last round
            of it that counts.
        most: rounds that are kept of each name.
    """

    def __init__(
        self,
        folder: Path,
        server_round: int,
        earlier: Sequence[tuple[Path, int]] = (),
        most: int = 3,
    ) -> None:
        self.folder = folder
        self.server_round = server_round
        self.earlier = earlier
        self.most = most

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was kept last before this round, on the CPU; None where nothing was.

        Raises:
            StateError: the file is damaged.
        """
        before = {number: file for number, file in self._kept(name) if number < self.server_round}
        if not before:
            return None
        file = before[max(before)]
        try:
            return load_file(file)
        except SafetensorError as error:
            raise StateError(
                f"{file} is damaged ({error}); remove it to go on from what was kept before it"
            ) from None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors as this round's: all of them or, if that fails, none.

        Rounds before the last `most` are forgotten, and those that no longer count.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {key: value.cpu().contiguous() for key, value in tensors.items()}
        file = self.folder / f"{name}.{self.server_round}.safetensors"
        replace_file(file, safetensors.torch.save(data))
        kept = {file for _, file in sorted(self._kept(name))[-self.most :]}
        for folder in (self.folder, *(folder for folder, _ in self.earlier)):
            for old in (*folder.glob(f"{name}.*.safetensors"), *folder.glob(f"{name}.*.partial")):
                if old not in kept:  # or was being written when a process was killed
                    old.unlink()
        for folder, _ in self.earlier:
            with suppress(OSError):  # something is in it, or it never was there
                folder.rmdir()
                folder.parent.rmdir()

    def _kept(self, name: str) -> list[tuple[int, Path]]:
        """Rounds and their files, as far as they count."""
        found = []
        for folder, last in (*self.earlier, (self.folder, None)):
            for file in folder.glob(f"{name}.*.safetensors"):
                number = int(file.name.split(".")[-2])
                if last is None or number <= last:
                    found.append((number, file))
        return found
