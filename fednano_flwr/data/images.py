"""Pictures as the vision encoder takes them: decoded, upright, RGB, transparency on white."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture, Sample

UNDECODABLE_PICTURE = "picture cannot be decoded"
DIGESTS_KEPT = 2**16
IMAGES = "images"
"""Folder beside a table for pictures that are copied there."""


def first_defect(sample: Sample) -> str | None:
    """Why a sample's pictures cannot be used, or None if they can; each is decoded once.

    Call it on a client's own shard, after partitioning: which samples go to which client must not
    depend on one machine's broken file.
    """
    for picture in sample.pictures:
        try:
            open_image(picture)
        except FileNotFoundError:
            return MISSING_PICTURE
        except DataError:
            return UNDECODABLE_PICTURE
    return None


def open_image(picture: Picture) -> Image.Image:
    """The picture in mode RGB, turned as its EXIF says; of an animation, the first frame.

    Raises:
        FileNotFoundError: the file is gone.
        DataError: it is no picture, is damaged, or is too large.
    """
    try:
        with Image.open(picture.path or io.BytesIO(picture.read())) as image:
            image.load()
            _check_scale(image)
            return _to_rgb(_upright(image))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise DataError(
            f"{picture} cannot be decoded: {error}. Get the file anew, or leave its "
            "question out (fednano_flwr.data.images.first_defect finds such questions)."
        ) from error


def content_digest(picture: Picture) -> bytes:
    """SHA-256 of the picture's file; one that has not been touched is read once a process.

    Raises:
        FileNotFoundError: the file is gone.
    """
    if picture.path is None:
        return hashlib.sha256(picture.data or b"").digest()
    found = os.stat(picture.path)
    return _file_digest(picture.path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=DIGESTS_KEPT)
def _file_digest(path: Path, *state: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, as transformers does; EXIF that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # nearly anything, as above; the pixels have been decoded
        return image


def _check_scale(image: Image.Image) -> None:
    """Refuse values of which nothing says how bright they are: most would come out black or white.

    Raises:
        ValueError: they are floats, or 32-bit numbers that are not 16-bit ones.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            "its pixels are 32-bit numbers, and nothing says which of them is white; store it with "
            "8 or 16 bits"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow would clip everything above 255 to white.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def with_copied_pictures(sample: Sample, folder: Path, all_pictures: bool = True) -> Sample:
    """Copy a sample's pictures into `folder`, byte by byte, and name them from there.

    They are called by their SHA-256, so that one that several questions show is there once. A
    broken one is copied as it is.

    Args:
        all_pictures: else only those that have no file of their own.

    Raises:
        DataError: one cannot be read.
    """

    def copied(picture: Picture) -> Picture:
        return _copied(picture, folder) if all_pictures or picture.path is None else picture

    return replace(
        sample,
        images=tuple(map(copied, sample.images)),
        choice_images=tuple(map(copied, sample.choice_images)),
    )


def _copied(picture: Picture, folder: Path) -> Picture:
    try:
        data = picture.read()
    except OSError as error:
        raise DataError(
            f"{picture} cannot be read: {error.strerror}. It was there when the dataset was read; "
            "put it back, or start again to read the dataset anew."
        ) from error
    suffix = picture.path.suffix.lower() if picture.path is not None else _suffix(data)
    name = Path(IMAGES, f"{hashlib.sha256(data).hexdigest()}{suffix}")
    if not (folder / name).exists():
        (folder / IMAGES).mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return Picture(name)


def _suffix(data: bytes) -> str:
    """`.png` and the like, "" for what is no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or '').lower()}"
    except Exception:  # Pillow raises nearly anything on a damaged file; opening it counts it
        return ""
