from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.images import UNDECODABLE_PICTURE, drop_unreadable, open_image
from fednano_flwr.data.reading import MISSING_PICTURE
from fednano_flwr.data.registry import load_questions
from fednano_flwr.data.sample import Sample

WHITE = (255, 255, 255)


def ask(image: Path | None, uid: str = "1") -> Sample:
    return Sample(uid=uid, question="?", choices=("a", "b"), answer=0, group="g", image=image)


def save(path: Path, image: Image.Image, **options: object) -> Sample:
    image.save(path, **options)
    return ask(path)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 40, (40, 40, 40)),
        ("1", 0, (0, 0, 0)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), WHITE),
        ("LA", (40, 0), WHITE),
        ("I;16", 0x8080, (0x80, 0x80, 0x80)),
        ("I;16", 0xFFFF, WHITE),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, mode, color, expected):
    image = open_image(save(tmp_path / "image.png", Image.new(mode, (5, 4), color)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert image.getpixel((2, 2)) == expected


def test_half_transparent_black_is_grey(tmp_path):
    image = open_image(save(tmp_path / "image.png", Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert image.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette_entry_is_white(tmp_path, suffix):
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.putpixel((1, 0), 1)
    image = open_image(save(tmp_path / f"image.{suffix}", picture, transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, (9, 8, 7)]


def test_transparent_colour_without_alpha_channel_is_white(tmp_path):
    picture = Image.new("RGB", (2, 2), (1, 2, 3))
    sample = save(tmp_path / "image.png", picture, transparency=(1, 2, 3))
    assert open_image(sample).getpixel((0, 0)) == WHITE


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    image = open_image(save(tmp_path / "image.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255))))
    assert image.mode == "RGB"
    assert max(image.getpixel((4, 4))) < 10


def test_unreadable_pictures_are_dropped_and_counted(tmp_path):
    whole = save(tmp_path / "whole.png", noise())
    names = ("truncated.png", "header.png", "text.png", "empty.png", "flipped.png")
    data = (tmp_path / "whole.png").read_bytes()
    flipped = data[:60] + bytes(255 - byte for byte in data[60:90]) + data[90:]
    contents = (data[: len(data) // 2], data[:20], b"no picture at all", b"", flipped)
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    broken = [ask(tmp_path / name) for name in (*names, "folder.png")]
    text_only, gone = ask(None), ask(tmp_path / "gone.png")

    usable, dropped = drop_unreadable([gone, whole, *broken, text_only])
    assert usable == [whole, text_only]
    assert dropped == {UNDECODABLE_PICTURE: 6, MISSING_PICTURE: 1}


def test_no_truncation_of_a_picture_crashes(tmp_path):
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        noise().convert("RGB").save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        samples = []
        for length in range(0, len(data), max(1, len(data) // 25)):
            path = tmp_path / f"{length}.{suffix}"
            path.write_bytes(data[:length])
            samples.append(ask(path))
        usable, dropped = drop_unreadable(samples)
        assert len(usable) + dropped.total() == len(samples)
        assert dropped[UNDECODABLE_PICTURE] > len(samples) / 2, suffix


def test_a_picture_too_large_to_decode_is_dropped(tmp_path, monkeypatch):
    sample = save(tmp_path / "image.png", Image.new("L", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert drop_unreadable([sample]) == ([], Counter({UNDECODABLE_PICTURE: 1}))


def test_opening_a_broken_picture_names_file_and_question(tmp_path):
    (tmp_path / "image.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"image\.png \(question 77\) cannot be decoded"):
        open_image(ask(tmp_path / "image.png", uid="77"))


def test_opening_a_text_only_question_says_so():
    with pytest.raises(DataError, match="question 1 is text-only"):
        open_image(ask(None))


@pytest.mark.parametrize(("name", "pictures"), [("iconqa", 31), ("scienceqa", 107)])
def test_every_picture_of_the_real_samples_is_readable(sample_data, name, pictures):
    questions = load_questions(name, sample_data / name)
    samples = [*questions.train, *questions.test]
    assert drop_unreadable(samples) == (samples, Counter())
    with_picture = [sample for sample in samples if sample.image]
    assert len(with_picture) == pictures
    assert {open_image(sample).mode for sample in with_picture} == {"RGB"}


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
