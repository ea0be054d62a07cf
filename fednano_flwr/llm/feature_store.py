"""Frozen image features that clients have sent, kept as long as there is room.

Memory first, then disk. Where room is needed, the owner that holds most gives up what it has not
used for longest, so that none can push out the others' but for its even share, or for what one
request of its may need. Any entry may be gone at any time: who needs it sends it again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

Name = tuple[bytes, bytes]
"""Owner and key: an owner's entries cannot be named by another."""
Entry = TypeVar("Entry")


class Level(Generic[Entry]):
    """Entries of one kind of room, and the bytes that each owner has there.

    Args:
        room: bytes of all entries together.
    """

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
        self._owners: dict[bytes, OrderedDict[bytes, tuple[Entry, int]]] = {}
        self._held: Counter[bytes] = Counter()

    def __contains__(self, name: Name) -> bool:
        return name[1] in self._owners.get(name[0], ())

    def count(self, owner: bytes) -> int:
        """Entries of this owner."""
        return len(self._owners.get(owner, ()))

    def add(self, name: Name, entry: Entry, size: int) -> None:
        """Put in an entry for which there is room, as its owner's latest."""
        owner, key = name
        self._owners.setdefault(owner, OrderedDict())[key] = entry, size
        self._held[owner] += size
        self.used += size

    def use(self, name: Name) -> Entry:
        """An entry, which becomes its owner's latest."""
        entries = self._owners[name[0]]
        entries.move_to_end(name[1])
        return entries[name[1]][0]

    def pop(self, name: Name) -> tuple[Entry, int]:
        """Take an entry and its size out."""
        owner, key = name
        entry, size = self._owners[owner].pop(key)
        self._held[owner] -= size
        self.used -= size
        if not self._owners[owner]:
            del self._owners[owner], self._held[owner]
        return entry, size

    def oldest(self, owner: bytes) -> Name:
        """What this owner has not used for longest."""
        return owner, next(iter(self._owners[owner]))

    def next_to_go(self, owner: bytes, size: int, least: int) -> Name:
        """What makes room for an entry of `owner`: the oldest of who would then hold most.

        As long as `owner` would hold no more than `least`, it is another's.
        """
        others = {other: held for other, held in self._held.items() if other != owner}
        own = self._held[owner] + size
        if others:
            largest = max(others, key=lambda other: others[other])
            if owner not in self._owners or own <= least or own < others[largest]:
                return self.oldest(largest)
        return self.oldest(owner)

    def clear(self) -> None:
        self._owners.clear()
        self._held.clear()
        self.used = 0


class FeatureStore:
    """Bounded store of tensors, safe for several threads.

    Args:
        memory_bytes: of tensors held in memory.
        disk_bytes: of tensors written to a temporary folder once memory is full; 0 for none.
        most: entries of one owner, on both together; 0 for no limit but the bytes.
        least: bytes that any owner may have at the others' cost: one request's, without which its
            client could not go on.
    """

    def __init__(
        self, memory_bytes: int, disk_bytes: int = 0, most: int = 0, least: int = 0
    ) -> None:
        self._memory: Level[Tensor] = Level(memory_bytes)
        self._disk: Level[tuple[Path, torch.device]] = Level(disk_bytes)  # and where it came from
        self._most, self._least, self._written = most, least, 0
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._told_of_disk = False

    def put(self, owner: bytes, key: bytes, features: Tensor) -> None:
        """Keep `features` (n, d); an earlier entry of this name is replaced."""
        with self._lock:
            self._forget((owner, key))
            if self._most and self.count(owner) >= self._most:
                level = self._disk if self._disk.count(owner) else self._memory
                self._forget(level.oldest(owner))
            self._keep((owner, key), features)

    def get(self, owner: bytes, key: bytes) -> Tensor | None:
        """The features of this name, or None if they are not here (any more)."""
        name = (owner, key)
        with self._lock:
            if name in self._memory:
                return self._memory.use(name)
            if name not in self._disk:
                return None
            path, device = self._disk.use(name)
        try:  # others need not wait for the disk; a copy, as the file is removed
            features = load_file(path)["features"].to(device, copy=True)
        except (OSError, SafetensorError, KeyError):
            features = None  # somebody cleared the folder: it is sent again
        with self._lock:
            if name in self._memory:  # another thread has fetched it meanwhile
                return self._memory.use(name)
            if name in self._disk:  # not forgotten meanwhile
                self._forget(name)
                if features is not None:
                    self._keep(name, features)
            return features

    def close(self) -> None:
        """Forget everything; the folder on disk goes as well."""
        with self._lock:
            self._memory.clear()
            self._disk.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def count(self, owner: bytes) -> int:
        """Entries of this owner."""
        return self._memory.count(owner) + self._disk.count(owner)

    @property
    def bytes_in_memory(self) -> int:
        return self._memory.used

    @property
    def bytes_on_disk(self) -> int:
        return self._disk.used

    def _keep(self, name: Name, features: Tensor) -> None:
        memory, size = self._memory, features.numel() * features.element_size()
        if size > memory.room:
            self._spill(name, features, size)
            return
        while memory.used + size > memory.room:
            oldest = memory.next_to_go(name[0], size, self._least)
            self._spill(oldest, *memory.pop(oldest))
        memory.add(name, features, size)

    def _spill(self, name: Name, features: Tensor, size: int) -> None:
        disk = self._disk
        if size > disk.room:
            return
        while disk.used + size > disk.room:
            self._forget(disk.next_to_go(name[0], size, self._least))
        self._written += 1
        path: Path | None = None
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="fednano-features-"))
            path = self._folder / f"{self._written}.safetensors"
            save_file({"features": features.contiguous().cpu()}, path)
        except (OSError, SafetensorError) as error:  # the disk is full: as good as gone
            if path is not None:
                path.unlink(missing_ok=True)
            if not self._told_of_disk:
                log.warning(
                    "clients' image features cannot be written to disk, and are sent again when "
                    "needed (this is said once): %s. Make room, set TMPDIR to another folder, or "
                    "raise llm.feature-memory-mb.",
                    error,
                )
                self._told_of_disk = True
            return
        disk.add(name, (path, features.device), size)

    def _forget(self, name: Name) -> None:
        if name in self._memory:
            self._memory.pop(name)
        if name in self._disk:
            (path, _), _ = self._disk.pop(name)
            path.unlink(missing_ok=True)
