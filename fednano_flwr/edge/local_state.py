"""What a client stores on its own disk from round to round, and never sends.

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
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fednano_flwr.adapters.site import LOCAL, adapter_state, add_adapter, load_adapter_state
from fednano_flwr.base.files import replace_file
from fednano_flwr.config import Adapter
from fednano_flwr.edge.local_work import LocalWork

OWN_ADAPTERS, LOCAL_ADAPTER = "own-adapters", "local-adapter"


class StateError(RuntimeError):
    """A client's own state cannot be read."""


class LocalState:
    """Named sets of tensors of one client, as one round's training finds and leaves them.

    Args:
        folder: of this client and run; made when something is first saved.
        server_round: training in it starts from what was saved last before it. Who scores a round
            asks for the state of the next.
        earlier: the client's folders of runs that this one continues, each with the last round
            of it that counts.
        most: rounds that are stored of each name.
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
        """What was saved last before this round, on the CPU; None where nothing was.

        Raises:
            StateError: the file is damaged.
        """
        before = {number: file for number, file in self._stored(name) if number < self.server_round}
        if not before:
            return None
        file = before[max(before)]
        try:
            return load_file(file)
        except SafetensorError as error:
            raise StateError(
                f"{file} is damaged ({error}); remove it to go on from what was saved before it"
            ) from None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors as this round's: all of them or, if that fails, none.

        Rounds before the last `most` are removed, and those that no longer count.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {key: value.cpu().contiguous() for key, value in tensors.items()}
        file = self.folder / f"{name}.{self.server_round}.safetensors"
        replace_file(file, safetensors.torch.save(data))
        recent = {file for _, file in sorted(self._stored(name))[-self.most :]}
        for folder in (self.folder, *(folder for folder, _ in self.earlier)):
            for old in (*folder.glob(f"{name}.*.safetensors"), *folder.glob(f"{name}.*.partial")):
                if old not in recent:  # or was being written when a process was killed
                    old.unlink()
        for folder, _ in self.earlier:
            with suppress(OSError):  # something is in it, or it never was there
                folder.rmdir()
                folder.parent.rmdir()

    def _stored(self, name: str) -> list[tuple[int, Path]]:
        """Rounds and their files, as far as they count."""
        found = []
        for folder, last in (*self.earlier, (self.folder, None)):
            for file in folder.glob(f"{name}.*.safetensors"):
                number = int(file.name.split(".")[-2])
                if last is None or number <= last:
                    found.append((number, file))
        return found


def load_adapters(
    adapters: PeftModel,
    theta: Mapping[str, Tensor],
    work: LocalWork,
    state: LocalState,
    config: Adapter,
    seed: int,
) -> None:
    """Set the adapters to what a message's training or scoring starts from.

    Args:
        adapters: as built; where the work wants both, a local one is added beside the first, of
            the same scale s = alpha / rank.
        theta: the server's adapters.
        seed: of a local adapter's first A (its B is zero).

    Raises:
        ValueError: the parameters do not fit the adapters.
        StateError: the client's own adapters cannot be read.
    """
    own = state.load(OWN_ADAPTERS) if work.adapters == "own" else None
    load_adapter_state(adapters, theta if own is None else own)
    if work.adapters != "both":
        return
    add_adapter(adapters, LOCAL, config.at(work.local_rank or config.rank), seed)
    if (local := state.load(LOCAL_ADAPTER)) is not None:
        load_adapter_state(adapters, local, LOCAL)


def save_adapters(adapters: PeftModel, work: LocalWork, state: LocalState) -> None:
    """After training: store the adapters that are the client's own."""
    if work.adapters == "own":
        state.save(OWN_ADAPTERS, adapter_state(adapters))
    if work.adapters == "both":
        state.save(LOCAL_ADAPTER, adapter_state(adapters, LOCAL))
