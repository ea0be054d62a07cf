"""Frozen features that were computed before: in memory, and on disk between processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from fednano_flwr.edge.encoder import QuestionEncoder
from fednano_flwr.models.edge_half import EdgeHalf
from fednano_flwr.models.processor import READERS

log = logging.getLogger(__name__)

SUFFIX, PARTIAL = ".features", ".partial"
OWN_FILES = re.compile(rf"[0-9a-f]{{64}}({re.escape(SUFFIX)}|\.\w+{re.escape(PARTIAL)})")
CHECKSUM_BYTES = 32
BLOCK = 4096  # what a small file takes of the disk
FILLED = 0.9  # share of the bound that is left when room is made
SHARE = 8  # a process looks at the folder anew when it has filled one part in so many of the room
ABANDONED_SECONDS = 3600.0
READ = " read"
"""Ends the key of what a connector reads to make features; empty where these are sent."""
FORMAT = 3
"""Of the files and of how features are computed; raise it with every change of either."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "pillow", "numpy", "soundfile", "soxr")


class Features(Protocol):
    """Features, as `Feature.rows`, by a key that stands for all that they depend on."""

    def get(self, key: str, /) -> Tensor | None: ...
    def __setitem__(self, key: str, value: Tensor, /) -> None: ...


class FeatureCache(dict[str, Tensor]):
    """Features in memory, up to a number of bytes; what does not fit is not stored.

    Nothing is evicted for it: an epoch reads all features once, so that the least recently used
    would always be the next one needed.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._free = max_bytes

    def __setitem__(self, key: str, value: Tensor) -> None:
        if key not in self and value.nbytes <= self._free:
            super().__setitem__(key, value)
            self._free -= value.nbytes


class FeatureFolder:
    """Features on disk, one file each, shared by all processes that are given the folder.

    <SHA-256 of model and key>.features    checksum (32 bytes), then the tensor as safetensors

    A file is written beside its place and renamed, and counts only if its checksum is right. The
    bound is on all files in the folder, whichever model's; the least recently used are removed
    first. A process lists the folder only when it has filled an eighth of the room that it found
    there, so that several together stay within the bound too, but for a file each.

    Args:
        folder: made when the first file is written; files of other names in it are left alone.
        max_bytes: of all features in it.
        model: `model_digest` of what computes the features.
        device: where features are wanted.
    """

    def __init__(self, folder: Path, max_bytes: int, model: str, device: torch.device) -> None:
        self.folder = folder
        self._max_bytes, self._model, self._device = max_bytes, model, device
        self._room = 0  # bytes that may be written before the folder is listed again
        self._writes = True

    def get(self, key: str) -> Tensor | None:
        """The features, or None where there are none that can be trusted."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        content = stored[CHECKSUM_BYTES:]
        whole = stored[:CHECKSUM_BYTES] == _checksum(path, content)
        with suppress(OSError):  # a folder that may only be read
            os.utime(path) if whole else path.unlink()
        if not whole:
            log.warning("%s is damaged: removed, its features are computed anew", path)
            return None
        return load(content)["features"].to(self._device)

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Write the features; where that fails, nothing more is written by this process."""
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
                "features are no longer written to disk, and are computed anew in each "
                "process: %s. Make room, or set edge.feature-dir to another folder, or "
                "edge.feature-disk-mb to 0.",
                error,
            )

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(f"{self._model} {key}".encode()).hexdigest() + SUFFIX)

    def _make_room(self, size: int) -> bool:
        """Whether `size` more bytes may be written, after old files are removed if necessary."""
        if size > self._max_bytes:
            return False
        if size > self._room:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = self._list()
            used = sum(size for _, size, _ in files)
            if used + size > self._max_bytes:
                while files and used > FILLED * self._max_bytes - size:
                    _, freed, path = files.pop(0)
                    used -= freed
                    with suppress(FileNotFoundError):
                        os.remove(path)
            self._room = max(size, (self._max_bytes - used) // SHARE)
        self._room -= size
        return True

    def _list(self) -> list[tuple[int, int, str]]:
        """Time of last use, bytes on disk and path of all features, the oldest first.

        What a process that was killed had begun to write is removed.
        """
        files, abandoned = [], time.time() - ABANDONED_SECONDS
        with os.scandir(self.folder) as entries:
            own = [entry for entry in entries if OWN_FILES.fullmatch(entry.name)]
        for entry in own:
            with suppress(FileNotFoundError):  # another process has removed it
                found = entry.stat()
                if entry.name.endswith(SUFFIX):
                    files.append((found.st_mtime_ns, _on_disk(found.st_size), entry.path))
                elif found.st_mtime < abandoned:
                    os.remove(entry.path)
        return sorted(files)


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
                self.from_disk += not key.endswith(READ)
                self._memory[key] = found
        return found

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._memory[key] = value
        self._disk[key] = value


def model_digest(half: EdgeHalf, encoder: QuestionEncoder) -> str:
    """Digest of all that features depend on besides the sample.

    Model, weights, preprocessing, libraries and hardware: processors of different kinds round
    differently, and so does one with another number of threads.
    """
    digest, processor = hashlib.sha256(f"{FORMAT}\n".encode()), encoder.processor
    for part in (
        half.fingerprint.partition("-")[0],  # the rest depends on which files are here
        half.vision_digest(),
        half.dtype,
        _hardware(half.device),
        type(processor).__name__,
        *(type(getattr(processor, part, None)).__name__ for part in READERS),
        *(f"{name} {_version(name)}" for name in LIBRARIES),
    ):
        digest.update(f"{part}\n".encode())
    for file in sorted(half.checkpoint.folder.glob("*processor_config.json")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


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
        with suppress(OSError):
            os.remove(partial)
        raise
