"""Frozen image features that clients have sent, kept as long as there is room.

Memory first, then disk. Where room is needed, the owner that holds most gives up its least recently
used, so that an owner can push out others' only up to its even share, or to what one request may
need. Any entry may be gone at any time: who needs it sends it again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)

Name = tuple[bytes, bytes]
"""Owner and key: an owner's entries cannot be named by another."""


class _Entry:
    """Features in memory, until they are written to a file.

    Attributes:
        features: (n, d); None once they are in the file alone.
        size: bytes.
    """

    def __init__(self, features: Tensor) -> None:
        self.features: Tensor | None = features
        self.size = features.numel() * features.element_size()
        self.device = features.device
        self.path: Path | None = None


class _Level:
    """Entries of one kind of room, each owner's in the order of their last use.

    Args:
        room: bytes of all entries together.
    """

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
        self._owners: dict[bytes, OrderedDict[bytes, _Entry]] = {}
        self._held: Counter[bytes] = Counter()

    def count(self, owner: bytes) -> int:
        """Entries of this owner."""
        return len(self._owners.get(owner, ()))

    def find(self, name: Name) -> _Entry | None:
        """The entry of this name, if it is here."""
        entries = self._owners.get(name[0])
        return entries.get(name[1]) if entries else None

    def add(self, name: Name, entry: _Entry) -> None:
        """Put in an entry for which there is room, as its owner's latest."""
        self._owners.setdefault(name[0], OrderedDict())[name[1]] = entry
        self._held[name[0]] += entry.size
        self.used += entry.size

    def use(self, name: Name) -> None:
        """Let an entry be its owner's latest."""
        self._owners[name[0]].move_to_end(name[1])

    def pop(self, name: Name) -> _Entry:
        """Take an entry out."""
        owner, key = name
        entry = self._owners[owner].pop(key)
        self._held[owner] -= entry.size
        self.used -= entry.size
        if not self._owners[owner]:
            del self._owners[owner], self._held[owner]
        return entry

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


class FeatureStore:
    """Bounded store of tensors, safe for several threads; none waits for another's disk.

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
        self._memory, self._disk = _Level(memory_bytes), _Level(disk_bytes)
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
            leaving = self._keep((owner, key), features)
        self._write(leaving)

    def get(self, owner: bytes, key: bytes) -> Tensor | None:
        """The features of this name, or None if they are not here (any more)."""
        name = (owner, key)
        with self._lock:
            level = self._memory if self._memory.find(name) else self._disk
            if (entry := level.find(name)) is None:
                return None
            level.use(name)
            if entry.features is not None:
                return entry.features
        try:  # a copy, as the file is removed
            assert entry.path is not None
            features = load_file(entry.path)["features"].to(entry.device, copy=True)
        except (OSError, SafetensorError, KeyError):
            features = None  # somebody cleared the folder: it is sent again
        leaving: list[tuple[Name, _Entry]] = []
        with self._lock:
            if self._disk.find(name) is entry:  # neither forgotten nor fetched meanwhile
                self._forget(name)
                if features is not None:
                    leaving = self._keep(name, features)
        self._write(leaving)
        return features

    def has(self, owner: bytes, key: bytes) -> bool:
        """Whether there is an entry of this name; it counts as used."""
        name = owner, key
        with self._lock:
            level = self._memory if self._memory.find(name) else self._disk
            if level.find(name) is None:
                return False
            level.use(name)
            return True

    def close(self) -> None:
        """Forget everything; the folder on disk goes as well."""
        with self._lock:
            self._memory, self._disk = _Level(self._memory.room), _Level(self._disk.room)
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

    def _keep(self, name: Name, features: Tensor) -> list[tuple[Name, _Entry]]:
        """Make an entry; returns those that left memory for the disk, to be written there."""
        memory, disk, entry = self._memory, self._disk, _Entry(features)
        leaving = []
        if entry.size > memory.room:
            leaving.append((name, entry))
        else:
            while memory.used + entry.size > memory.room:
                oldest = memory.next_to_go(name[0], entry.size, self._least)
                leaving.append((oldest, memory.pop(oldest)))
            memory.add(name, entry)
        for place, left in leaving:
            if left.size <= disk.room:
                while disk.used + left.size > disk.room:
                    self._forget(disk.next_to_go(place[0], left.size, self._least))
                disk.add(place, left)
        return leaving

    def _write(self, leaving: list[tuple[Name, _Entry]]) -> None:
        """Write entries of the disk's level; until then they can be had from memory."""
        for name, entry in leaving:
            try:
                with self._lock:
                    features = entry.features
                    if features is None or self._disk.find(name) is not entry:
                        continue  # it was forgotten meanwhile
                    entry.path = self._new_path()
                save_file({"features": features.contiguous().cpu()}, entry.path)
            except (OSError, SafetensorError) as error:  # the disk is full: as good as gone
                self._tell_of_disk(error)
                with self._lock:
                    if self._disk.find(name) is entry:
                        self._disk.pop(name)
            with self._lock:
                entry.features = None
                if entry.path is not None and self._disk.find(name) is not entry:
                    entry.path.unlink(missing_ok=True)

    def _new_path(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fednano-features-"))
        self._written += 1
        return self._folder / f"{self._written}.safetensors"

    def _tell_of_disk(self, error: Exception) -> None:
        if not self._told_of_disk:
            log.warning(
                "clients' image features cannot be written to disk, and are sent again when needed "
                "(this is said once): %s. Make room, set TMPDIR to another folder, or raise "
                "llm.feature-memory-mb.",
                error,
            )
            self._told_of_disk = True

    def _forget(self, name: Name) -> None:
        for level in (self._memory, self._disk):
            if level.find(name) is not None and (path := level.pop(name).path) is not None:
                path.unlink(missing_ok=True)
