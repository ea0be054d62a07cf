"""Write one client's shard to a folder of its own, which `shard.load_shard` reads."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fednano_flwr.base.files import describe_file
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.manifest import TEST_FILE, TRAIN_FILE, write_manifest
from fednano_flwr.data.sample import Picture, Questions, Sample
from fednano_flwr.data.shard import Shard
from fednano_flwr.data.table import write_table

IMAGES = "images"


@dataclass(frozen=True)
class Written:
    """What a shard's folder holds: numbers of questions, of different pictures, and all bytes."""

    train: int
    test: int
    pictures: int
    bytes: int


def write_shard(
    folder: Path,
    shard: Shard,
    facts: Mapping[str, Any],
    each: Callable[[], object] = lambda: None,
) -> Written:
    """Write a shard's tables, pictures and manifest into `folder`.

    Pictures are copied byte by byte, broken ones too, under the name of their SHA-256, so that one
    that several questions show is there once.

    Args:
        folder: an empty folder, or none yet.
        facts: added to the manifest.
        each: called after each question.

    Raises:
        DataError: a picture is gone.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / IMAGES).mkdir(exist_ok=True)
    files: dict[str, dict[str, Any]] = {}

    def moved(questions: Questions) -> Iterator[Sample]:
        for sample in questions:
            yield dataclasses.replace(
                sample,
                image=sample.image and _copy(sample.image, folder, files),
                choice_images=tuple(_copy(p, folder, files) for p in sample.choice_images),
            )
            each()

    train = write_table(folder / TRAIN_FILE, moved(shard.train))
    test = write_table(folder / TEST_FILE, moved(shard.test))
    pictures = len(files)
    for name in (TRAIN_FILE, TEST_FILE):
        files[name] = describe_file(folder / name)
    counts = {"train": train, "test": test, "pictures": pictures}
    write_manifest(folder, {**facts, "counts": counts, "files": files})
    return Written(train, test, pictures, sum(file["bytes"] for file in files.values()))


def picture_bytes(picture: Picture) -> bytes:
    """The content of a picture's file.

    Raises:
        DataError: it cannot be read.
    """
    if picture.data is not None:
        return picture.data
    assert picture.path is not None
    try:
        return picture.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{picture.path} cannot be read: {error.strerror}. It was there when the dataset was "
            "read; put it back, or start again to read the dataset anew."
        ) from error


def picture_size(picture: Picture) -> int:
    """Bytes of a picture's file; 0 if it is gone, which writing reports."""
    if picture.data is not None:
        return len(picture.data)
    assert picture.path is not None
    try:
        return picture.path.stat().st_size
    except OSError:
        return 0


def _copy(picture: Picture, folder: Path, files: dict[str, dict[str, Any]]) -> Picture:
    """Put a picture into `folder`, note it in `files`, and give it with its path from there."""
    data = picture_bytes(picture)
    digest = hashlib.sha256(data).hexdigest()
    suffix = picture.path.suffix.lower() if picture.path is not None else _suffix(data)
    name = f"{IMAGES}/{digest}{suffix}"
    if name not in files:
        (folder / name).write_bytes(data)
        files[name] = {"bytes": len(data), "sha256": digest}
    return Picture(path=Path(name))


def _suffix(data: bytes) -> str:
    """`.png` and the like, none for what is no picture: a broken one is copied as it is."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or '').lower()}"
    except Exception:  # Pillow raises nearly anything on a damaged file; opening it counts it
        return ""
