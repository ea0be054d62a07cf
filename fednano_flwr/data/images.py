"""Pictures as the vision encoder takes them: decoded, upright, RGB, transparency on white."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.sample import Picture


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
            "question out (fednano_flwr.data.media.first_defect finds such questions)."
        ) from error


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
