"""Sounds: how they are read, and how rows bring them."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from fednano_flwr.data.errors import DataError
from fednano_flwr.data.load import load_questions
from fednano_flwr.data.media import first_defect
from fednano_flwr.data.prompts import user_content
from fednano_flwr.data.sample import Place, Sample, Sound, Turn
from fednano_flwr.data.shard import all_shards
from fednano_flwr.data.shard_folder import load_shard, write_shard
from fednano_flwr.data.sounds import open_sound
from tests.data.conftest import png, settings
from tests.sounds import as_file, noise, sound, tone

SAID = {"role": "assistant", "content": "A bell."}


def heard(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, SAID]


def load(path: Path, name: str = "messages", **changes: Any) -> Any:
    own = {"name": name, "path": str(path), "test_fraction": 0.01, "max_skipped": 1.0}
    return load_questions(settings(**own | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(as_file(tone(440)))
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_sound_is_read_as_one_channel_at_the_rate_asked_for() -> None:
    low, high = tone(440, rate=8000), tone(440, rate=16_000)
    found = open_sound(sound(np.stack([low, 0 * low], axis=1), 8000), 16_000)
    assert found.dtype == np.float32 and found.shape == high.shape
    inner = slice(500, -500)  # a filter rings at the ends
    np.testing.assert_allclose(found[inner], high[inner] / 2, atol=2e-3)
    again = [open_sound(sound(noise(1), 8000), 16_000) for _ in range(2)]
    assert np.array_equal(*again)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_of_several_kinds_hold_the_same_tone(kind: str) -> None:
    found = open_sound(Sound(data=as_file(tone(440), kind=kind)), 16_000)
    assert np.abs(np.fft.rfft(found)).argmax() / len(found) * 16_000 == pytest.approx(440, abs=4)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
def test_a_file_that_is_cut_off_is_not_read_up_to_there(kind: str) -> None:
    whole = as_file(noise(1, seconds=20), kind=kind)
    assert len(open_sound(Sound(data=whole), 16_000)) == 320_000
    with pytest.raises(DataError, match="cannot be decoded"):
        open_sound(Sound(data=whole[: len(whole) // 2]), 16_000)


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_file_that_was_written_before_its_length_was_known_is_read(size: int) -> None:
    whole = bytearray(as_file(tone(440)))
    whole[40:44] = size.to_bytes(4, "little")
    assert len(open_sound(Sound(data=bytes(whole)), 16_000)) == 8000


def test_what_is_no_sound_is_named_with_a_reason(tmp_path: Path) -> None:
    infinite = as_file(np.array([0, np.inf], dtype="f4"), subtype="FLOAT")
    for broken in (b"no sound", png(), as_file(tone(1, seconds=0)), infinite):
        with pytest.raises(DataError, match=r"a sound of \d+ bytes cannot be decoded"):
            open_sound(Sound(data=broken), 16_000)
        assert first_defect(asked(Sound(data=broken))) == "sound cannot be decoded"
    gone = Sound(tmp_path / "gone.wav")
    assert first_defect(asked(gone)) == "sound file is missing"
    assert first_defect(asked(sound(tone(440)))) is None
    with pytest.raises(FileNotFoundError):
        open_sound(gone, 16_000)


def asked(*sounds: Sound) -> Sample:
    return Sample("1", "What is heard?", "g", "s", free_answer="A bell.", sounds=sounds)


def test_a_dialogue_has_sounds_where_its_texts_and_blocks_do(folder: Path) -> None:
    file = write(
        folder,
        {"messages": heard("<audio>What is heard?"), "audios": ["a.wav"]},
        {"messages": heard("Is <image> what <audio> is?"), "audios": "a.wav", "images": "a.png"},
        {"messages": heard([{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "?"}])},
        {"messages": heard("What is heard?"), "audios": ["a.wav"], "images": ["a.png"]},
        {"messages": heard("<audio>"), "audios": ["a.wav"]},
        {"messages": heard("<audio>What?"), "audios": ["a.wav", "a.wav"]},
    )
    found = load(file)
    picture, heard_here = Place.PICTURE, Place.SOUND
    assert all(sample.sounds == (Sound(folder / "a.wav"),) for sample in found.train)
    assert [sample.turns[0].parts for sample in found.train] == [
        (heard_here, "What is heard?"),
        ("Is ", picture, " what ", heard_here, " is?"),
        (heard_here, "?"),
        (picture, heard_here, "What is heard?"),
        (heard_here,),
    ]
    assert found.skipped == {"it has another number of sounds than of places for them": 1}


def test_a_tables_sounds_stand_after_pictures_and_before_the_text(folder: Path) -> None:
    row = {
        "audio": "a.wav",
        "image": "a.png",
        "question": "<audio><image>What?",
        "answer": "A bell.",
    }
    (sample,) = load(write(folder, row), "table").train
    kinds = [part["type"] for part in user_content(sample)]
    assert kinds == ["image", "audio", "text"] and sample.sounds == (Sound(folder / "a.wav"),)
    assert sample.question == "What?"
    alone = write(folder, {"audio": "a.wav", "answer": "A bell."})
    (sample,) = load(alone, "table", instruction="What is heard?").train
    assert sample.question == "What is heard?"


def test_audio_columns_of_datasets_are_read_and_go_into_shards(tmp_path: Path) -> None:
    """Their dictionaries of bytes and path; a shard holds each file once."""
    data = [{"bytes": as_file(tone(hertz)), "path": None} for hertz in (200, 400, 200, 400)]
    table = {"messages": [heard("<audio>?")] * 4, "audios": [[one] for one in data]}
    audio = datasets.List(datasets.Audio(decode=False))
    rows = datasets.Dataset.from_dict(table).cast_column("audios", audio)
    rows.to_parquet(str(tmp_path / "data.parquet"))
    dataset = settings(
        name="messages",
        path=str(tmp_path / "data.parquet"),
        test_fraction=0.5,
        partitioner="iid",
        min_partition_size=1,
    )
    (shard,) = all_shards(load_questions(dataset), dataset, 0, 1)
    written = write_shard(tmp_path / "shard", shard, {})
    assert (written["sounds"], written["pictures"]) == (2, 0)
    again = load_shard(tmp_path / "shard")
    kept, sent = [*again.train, *again.test], [*shard.train, *shard.test]
    assert [one.turns for one in kept] == [one.turns for one in sent]
    assert kept[0].turns == (Turn("user", (Place.SOUND, "?")),)
    for one, other in zip(kept, sent, strict=True):
        assert one.sounds[0].read() == other.sounds[0].read() in [d["bytes"] for d in data]
