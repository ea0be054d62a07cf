from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fednano_flwr.data.defects import MISSING_PICTURE
from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import open_image
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.media import UNDECODABLE_PICTURE, first_defect
from fednano_flwr.data.sample import Picture, Sample
from tests.data.conftest import settings

WHITE = (255, 255, 255)


def ask(*pictures: Picture) -> Sample:
    image, options = pictures[:1], pictures[1:]
    return Sample(
        "1", "?", group="g", subject="s", choice_images=tuple(options), answer=0, images=image
    )


def save(path: Path, image: Image.Image, **options: object) -> Picture:
    image.save(path, **options)
    return Picture(path)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 40, (40, 40, 40)),
        ("1", 0, (0, 0, 0)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), WHITE),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (40, 0), WHITE),
        ("I;16", 0x8080, (0x80, 0x80, 0x80)),
        ("I;16", 0xFFFF, WHITE),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, mode, color, expected):
    image = open_image(save(tmp_path / "image.png", Image.new(mode, (5, 4), color)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image.getpixel((2, 2)) == expected


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (5, 3)), (6, (3, 0)), (8, (0, 5)), (2, (5, 0))]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, mode, orientation, corner):
    stored = Image.new("RGB", (6, 4))
    stored.putpixel((0, 0), WHITE)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = open_image(save(tmp_path / "image.png", stored.convert(mode), exif=exif))
    assert image.size == ((4, 6) if orientation > 4 else (6, 4))
    white = [xy for xy in np.ndindex(*image.size) if image.getpixel(xy) == WHITE]
    assert (image.mode, white) == ("RGB", [corner])


def test_a_picture_whose_exif_cannot_be_read_is_as_it_was_stored(tmp_path):
    picture = save(tmp_path / "image.png", Image.new("RGB", (6, 4)), exif=b"no header of a TIFF")
    assert open_image(picture).size == (6, 4)
    assert first_defect(ask(picture)) is None


@pytest.mark.parametrize(("kind", "value"), [(np.float32, 0.5), (np.float32, 128), (np.int32, 128)])
def test_pixels_whose_white_is_not_known_are_a_defect(tmp_path, kind, value):
    picture = save(tmp_path / "image.tiff", Image.fromarray(np.full((4, 6), value, kind)))
    assert first_defect(ask(picture)) == UNDECODABLE_PICTURE
    with pytest.raises(DataError, match="32-bit"):
        open_image(picture)


@pytest.mark.parametrize("most", [4095, 65535])
def test_a_grey_map_of_more_than_8_bits_keeps_its_scale(most):
    data = b"P5\n2 2\n%d\n" % most + (most // 2).to_bytes(2, "big") * 4
    assert open_image(Picture(data=data)).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette_entry_is_white(tmp_path, suffix):
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.putpixel((1, 0), 1)
    image = open_image(save(tmp_path / f"image.{suffix}", picture, transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (9, 8, 7)]


def test_transparent_colour_without_alpha_channel_is_white(tmp_path):
    picture = Image.new("RGB", (2, 2), (1, 2, 3))
    saved = save(tmp_path / "image.png", picture, transparency=(1, 2, 3))
    assert open_image(saved).getpixel((0, 0)) == WHITE


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = open_image(save(tmp_path / "image.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255))))
    assert image.mode == "RGB"
    assert max(image.getpixel((4, 4))) < 10


def test_what_cannot_be_decoded_is_a_defect_and_so_is_what_is_gone(tmp_path):
    whole = save(tmp_path / "whole.png", noise())
    data = (tmp_path / "whole.png").read_bytes()
    flipped = data[:60] + bytes(255 - byte for byte in data[60:90]) + data[90:]
    for content in (data[: len(data) // 2], data[:20], b"no picture at all", b"", flipped):
        (tmp_path / "broken.png").write_bytes(content)
        for broken in (Picture(tmp_path / "broken.png"), Picture(data=content)):
            assert first_defect(ask(broken)) == UNDECODABLE_PICTURE
            assert first_defect(ask(whole, whole, broken)) == UNDECODABLE_PICTURE
    (tmp_path / "folder.png").mkdir()
    assert first_defect(ask(Picture(tmp_path / "folder.png"))) == UNDECODABLE_PICTURE
    assert first_defect(ask(whole, Picture(tmp_path / "gone.png"))) == MISSING_PICTURE
    assert first_defect(ask(whole, whole)) is None
    assert first_defect(ask()) is None


def test_no_truncation_of_a_picture_crashes(tmp_path):
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        noise().convert("RGB").save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        lengths = range(0, len(data), max(1, len(data) // 25))
        defects = [first_defect(ask(Picture(data=data[:length]))) for length in lengths]
        assert defects.count(UNDECODABLE_PICTURE) > len(lengths) / 2, suffix


def test_a_picture_too_large_to_decode_is_a_defect(tmp_path, monkeypatch):
    picture = save(tmp_path / "image.png", Image.new("L", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert first_defect(ask(picture)) == UNDECODABLE_PICTURE


def test_opening_a_broken_picture_names_the_file(tmp_path):
    (tmp_path / "image.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image\.png cannot be decoded"):
        open_image(Picture(tmp_path / "image.png"))
    with pytest.raises(DataError, match="a picture of 10 bytes cannot be"):
        open_image(Picture(data=b"no picture"))


def test_a_picture_is_either_a_file_or_bytes():
    for arguments in ({}, {"path": Path("x"), "data": b"x"}):
        with pytest.raises(ValueError, match="either a path or data"):
            Picture(**arguments)


@pytest.mark.parametrize(("name", "pictures"), [("iconqa", 168), ("scienceqa", 107)])
def test_every_picture_of_the_real_samples_is_readable(sample_data, name, pictures):
    questions = load_questions(settings(name=name, path=str(sample_data / name), max_skipped=0.5))
    samples = [*questions.train, *questions.test]
    assert {first_defect(sample) for sample in samples} == {None}
    opened = [open_image(picture) for sample in samples for picture in sample.pictures]
    assert len(opened) == pictures
    assert {image.mode for image in opened} == {"RGB"}


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
