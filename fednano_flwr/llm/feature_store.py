"""Frozen image features that clients have sent, kept as long as there is room.

Memory first, then disk, the least recently used going first. Any entry may be gone at any time:
who needs it sends it again.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Name = tuple[bytes, bytes]
"""Owner and key: an owner's entries cannot be named by another."""


class FeatureStore:
    """Bounded store of tensors, safe for several threads.

    Args:
        memory_bytes: of tensors held in memory.
        disk_bytes: of tensors written to a temporary folder once memory is full; 0 for none.
    """

    def __init__(self, memory_bytes: int, disk_bytes: int = 0) -> None:
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._memory: OrderedDict[Name, Tensor] = OrderedDict()
        self._disk: OrderedDict[Name, tuple[Path, int]] = OrderedDict()
        self._in_memory = self._on_disk = self._written = 0
        self._lock = threading.Lock()
        self._folder: Path | None = None

    def put(self, owner: bytes, key: bytes, features: Tensor) -> None:
        """Keep `features` (n, d); an earlier entry of this name is replaced."""
        with self._lock:
            self._forget((owner, key))
            self._keep((owner, key), features)

    def get(self, owner: bytes, key: bytes) -> Tensor | None:
        """The features of this name, or None if they are not here (any more)."""
        name = (owner, key)
        with self._lock:
            if name in self._memory:
                self._memory.move_to_end(name)
                return self._memory[name]
            if name not in self._disk:
                return None
            path, _ = self._disk[name]
            try:
                features = load_file(path)["features"]
            except (OSError, SafetensorError, KeyError):
                features = None  # somebody cleared the folder: it is sent again
            self._forget(name)
            if features is not None:
                self._keep(name, features)
            return features

    def close(self) -> None:
        """Forget everything; the folder on disk goes as well."""
        with self._lock:
            self._memory.clear()
            self._disk.clear()
            self._in_memory = self._on_disk = 0
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    @property
    def bytes_in_memory(self) -> int:
        return self._in_memory

    @property
    def bytes_on_disk(self) -> int:
        return self._on_disk

    def _keep(self, name: Name, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if size > self._memory_bytes:
            self._spill(name, features, size)
            return
        while self._in_memory + size > self._memory_bytes:
            oldest, tensor = self._memory.popitem(last=False)
            freed = tensor.numel() * tensor.element_size()
            self._in_memory -= freed
            self._spill(oldest, tensor, freed)
        self._memory[name] = features
        self._in_memory += size

    def _spill(self, name: Name, features: Tensor, size: int) -> None:
        if size > self._disk_bytes:
            return
        while self._on_disk + size > self._disk_bytes:
            self._forget(next(iter(self._disk)))
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="fednano-features-"))
        self._written += 1
        path = self._folder / f"{self._written}.safetensors"
        try:
            save_file({"features": features.contiguous().cpu()}, path)
        except (OSError, SafetensorError):  # the disk is full: as good as gone
            path.unlink(missing_ok=True)
            return
        self._disk[name] = (path, size)
        self._on_disk += size

    def _forget(self, name: Name) -> None:
        if name in self._memory:
            tensor = self._memory.pop(name)
            self._in_memory -= tensor.numel() * tensor.element_size()
        if name in self._disk:
            path, size = self._disk.pop(name)
            self._on_disk -= size
            path.unlink(missing_ok=True)
