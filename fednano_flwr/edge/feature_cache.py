"""Frozen image features that were computed before: in memory, and on disk between processes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

log = logging.getLogger(__name__)

SUFFIX, PARTIAL = ".features", ".partial"
OWN_FILES = re.compile(rf"[0-9a-f]{{64}}({re.escape(SUFFIX)}|\.\w+{re.escape(PARTIAL)})")
CHECKSUM_BYTES = 32
BLOCK = 4096  # what a small file takes of the disk
KEPT = 0.9  # share of the bound that is left when room is made
SHARE = 8  # a process looks at the folder anew when it has filled one part in so many of the room
ABANDONED_SECONDS = 3600.0


class Features(Protocol):
    """Image features (n, d) by a key that stands for all that they depend on."""

    def get(self, key: str, /) -> Tensor | None: ...
    def __setitem__(self, key: str, value: Tensor, /) -> None: ...


class FeatureCache(MutableMapping[str, Tensor]):
    """Features in memory, up to a number of bytes; what does not fit is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._features: dict[str, Tensor] = {}
        self._free = max_bytes

    def __getitem__(self, key: str) -> Tensor:
        return self._features[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        size = value.numel() * value.element_size()
        if key not in self._features and size <= self._free:
            self._features[key] = value
            self._free -= size

    def __delitem__(self, key: str) -> None:
        value = self._features.pop(key)
        self._free += value.numel() * value.element_size()

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class FeatureFolder:
    """Features on disk, one file each, shared by all processes that are given the folder.

    <SHA-256 of model and key>.features    checksum (32 bytes), then the tensor as safetensors

    A file is written beside its place and renamed, and counts only if its checksum is right. The
    bound is on all files in the folder, whichever model's; those not used for longest go first. A
    process looks through the folder only when it has filled an eighth of the room that it found
    there, so that several together stay within the bound too, but for a file each.

    Args:
        folder: made when the first file is written; files of other names in it are left alone.
        max_bytes: of all features in it.
        model: digest of all that features depend on besides the sample.
        device: where features are wanted.
    """

    def __init__(self, folder: Path, max_bytes: int, model: str, device: torch.device) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._model = model
        self._device = device
        self._room = 0  # bytes that may be written before the folder is looked at anew
        self._writes = True

    def get(self, key: str) -> Tensor | None:
        """The features, or None where there are none that can be trusted."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        checksum, content = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
        if checksum != _checksum(path, content):
            log.warning("%s is damaged: removed, its features are computed anew", path)
            _remove(path)
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return load(content)["features"].to(self._device)

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Keep the features; where that fails, nothing more is written by this process."""
        if not self._writes:
            return
        path = self._path(key)
        content = save({"features": value.cpu().contiguous()})
        try:
            if self._make_room(_on_disk(CHECKSUM_BYTES + len(content))):
                _write(path, _checksum(path, content) + content)
        except OSError as error:
            self._writes = False
            log.warning(
                "image features are no longer written to disk, and are computed anew in each "
                "process: %s. Make room, or set edge.feature-dir to another folder, or "
                "edge.feature-disk-mb to 0.",
                error,
            )

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(f"{self._model} {key}".encode()).hexdigest() + SUFFIX)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes may be written, after old files are gone if they have to be."""
        if size > self._max_bytes:
            return False
        if size > self._room:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            used = self._used()
            if used + size > self._max_bytes:
                used = self._used(at_most=max(0, int(KEPT * self._max_bytes) - size))
            self._room = max(size, (self._max_bytes - used) // SHARE)
        self._room -= size
        return True

    def _used(self, at_most: int | None = None) -> int:
        """Bytes of all features in the folder, the oldest removed until there are `at_most`."""
        used, files = 0, []
        abandoned = time.time() - ABANDONED_SECONDS
        with os.scandir(self.folder) as entries:
            own = [entry for entry in entries if OWN_FILES.fullmatch(entry.name)]
        for entry in own:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                found = entry.stat()
                if not entry.name.endswith(PARTIAL):
                    files.append((found.st_mtime_ns, _on_disk(found.st_size), entry.path))
                elif found.st_mtime < abandoned:
                    os.remove(entry.path)
                    continue
                used += _on_disk(found.st_size)
        if at_most is not None:
            for _, size, path in sorted(files):
                if used <= at_most:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
                used -= size
        return used


class FeatureLevels:
    """Memory first, then disk; what is found on disk is kept in memory.

    Attributes:
        from_disk: how many features have been read from disk.
    """

    def __init__(self, memory: Features, disk: Features) -> None:
        self._memory, self._disk = memory, disk
        self.from_disk = 0

    def get(self, key: str) -> Tensor | None:
        found = self._memory.get(key)
        if found is None:
            found = self._disk.get(key)
            if found is not None:
                self.from_disk += 1
                self._memory[key] = found
        return found

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._memory[key] = value
        self._disk[key] = value


def _checksum(path: Path, content: bytes) -> bytes:
    """Of a file's content under its name: a file that was renamed is as wrong as a changed one."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(content)
    return digest.digest()


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _write(path: Path, content: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(PARTIAL, f"{path.stem}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        _remove(Path(partial))
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
