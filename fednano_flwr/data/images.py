"""Pictures as the vision encoder takes them: decoded, RGB, transparency on white."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from PIL import Image

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.reading import MISSING_PICTURE
from fednano_flwr.data.sample import Sample

UNDECODABLE_PICTURE = "picture cannot be decoded"


def drop_unreadable(samples: Iterable[Sample]) -> tuple[list[Sample], Counter[str]]:
    """Decode every picture once and keep the samples whose picture can be used.

    Text-only samples are kept. Call it on a client's own shard, after partitioning: which samples
    go to which client must not depend on one machine's broken file.

    Returns:
        The usable samples in their order, and how many were dropped for which reason.
    """
    usable: list[Sample] = []
    dropped: Counter[str] = Counter()
    for sample in samples:
        try:
            if sample.image is not None:
                open_image(sample)
            usable.append(sample)
        except FileNotFoundError:
            dropped[MISSING_PICTURE] += 1
        except DataError:
            dropped[UNDECODABLE_PICTURE] += 1
    return usable, dropped


def open_image(sample: Sample) -> Image.Image:
    """The sample's picture in mode RGB; of an animation, the first frame.

    Raises:
        FileNotFoundError: the file is gone.
        DataError: it is no picture, is damaged, or is too large; or the sample is text-only.
    """
    if sample.image is None:
        raise DataError(f"question {sample.uid} is text-only and has no picture to open.")
    try:
        with Image.open(sample.image) as image:
            image.load()
            return _to_rgb(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise DataError(
            f"{sample.image} (question {sample.uid}) cannot be decoded: {error}. "
            "Replace the file, or drop the question with drop_unreadable."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow would clip everything above 255 to white.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")
