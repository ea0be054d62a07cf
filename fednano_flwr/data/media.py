"""Files of pictures and sounds: which of them cannot be used, their digests, and copies."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

from PIL import Image

from fednano_flwr.data.defects import MISSING
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.sample import MediaFile, Picture, Sample, Sound
from fednano_flwr.data.sounds import read_sound

UNDECODABLE = "{} cannot be decoded"
UNDECODABLE_PICTURE = UNDECODABLE.format("picture")
DIGESTS_KEPT = 2**16
FOLDERS: dict[type[MediaFile], str] = {Picture: "images", Sound: "audio"}
"""Folders beside a table for files that are copied there."""
File = TypeVar("File", bound=MediaFile)


def first_defect(sample: Sample) -> str | None:
    """Why a sample's pictures or sounds cannot be used, or None if they can; each is decoded once.

    Call it on a client's own shard, after partitioning: which samples go to which client must not
    depend on one machine's broken file.
    """
    for file in chain.from_iterable(sample.media.values()):
        try:
            open_image(file) if isinstance(file, Picture) else read_sound(file)
        except FileNotFoundError:
            return MISSING.format(file.noun)
        except DataError:
            return UNDECODABLE.format(file.noun)
    return None


def content_digest(file: MediaFile) -> bytes:
    """SHA-256 of a file; one that has not been touched is read once a process.

    Raises:
        FileNotFoundError: the file is gone.
    """
    if file.path is None:
        return hashlib.sha256(file.data or b"").digest()
    found = os.stat(file.path)
    return _file_digest(file.path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=DIGESTS_KEPT)
def _file_digest(path: Path, *state: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def with_copied_files(sample: Sample, folder: Path, all_files: bool = True) -> Sample:
    """Copy a sample's pictures and sounds into `folder`, byte by byte, and name them from there.

    They are called by their SHA-256, so that one that several questions show is there once. A
    broken one is copied as it is.

    Args:
        all_files: else only those that have no file of their own.

    Raises:
        DataError: one cannot be read.
    """

    def copied(files: Sequence[File]) -> tuple[File, ...]:
        return tuple(
            _copied(one, folder) if all_files or one.path is None else one for one in files
        )

    return replace(
        sample,
        images=copied(sample.images),
        choice_images=copied(sample.choice_images),
        sounds=copied(sample.sounds),
    )


def _copied(file: File, folder: Path) -> File:
    try:
        data = file.read()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}. It was there when the dataset was read; "
            "put it back, or start again to read the dataset anew."
        ) from error
    suffix = file.path.suffix.lower() if file.path is not None else _suffix(data)
    name = Path(FOLDERS[type(file)], f"{hashlib.sha256(data).hexdigest()}{suffix}")
    if not (folder / name).exists():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return type(file)(name)


def _suffix(data: bytes) -> str:
    """`.png` and the like, "" for what is no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or '').lower()}"
    except Exception:  # Pillow raises nearly anything on a damaged file; opening it counts it
        return ""
