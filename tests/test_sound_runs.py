"""Whole runs on made sounds: what is learned of them, alone and beside pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.preflight import validate
from tests.sounds import as_file, noise, tone

Config = Callable[..., dict[str, Any]]
LOW, HIGH = (150, 400), (1200, 3000)
"""Hertz: which of two ranges a tone is from is asked."""


def heard(seed: int) -> tuple[np.ndarray, int]:
    """A tone in noise, and from which range it is."""
    draw = np.random.default_rng(seed)
    high = int(draw.integers(2))
    hertz, length = draw.uniform(*(LOW, HIGH)[high]), draw.uniform(0.2, 0.4)
    return tone(hertz, length, loud=draw.uniform(0.2, 0.6)) + 0.05 * noise(seed, length), high


def shade(seed: int) -> tuple[Image.Image, int]:
    """A dark or a bright picture, with noise."""
    draw = np.random.default_rng(seed)
    bright = int(draw.integers(2))
    pixels = draw.normal((60, 190)[bright], 20, (24, 24, 3)).clip(0, 255)
    return Image.fromarray(pixels.astype("u1")), bright


def write_rows(folder: Path, pictures_of: str = "") -> Path:
    """Sounds of two sites, or pictures at one of them; the last quarter of each is for testing."""
    (folder / "data").mkdir(parents=True)
    for split, seeds in (("train", range(96)), ("test", range(1000, 1032))):
        rows = []
        for seed in seeds:
            site = "ab"[seed % 2]
            if site == pictures_of:
                picture, answer = shade(seed)
                picture.save(folder / "data" / f"{seed}.png")
                media = {"image": f"{seed}.png"}
            else:
                sound, answer = heard(seed)
                (folder / "data" / f"{seed}.wav").write_bytes(as_file(sound))
                media = {"audio": f"{seed}.wav"}
            asked = {"question": "w20", "choices": ["w22", "w23"], "answer": answer}
            rows.append({**media, **asked, "group": site})
        lines = "\n".join(map(json.dumps, rows))
        (folder / "data" / f"{split}.jsonl").write_text(lines + "\n")
    return folder / "data"


def of_sounds(run_config: Config, model: Path, data: Path, **changes: Any) -> RunConfig:
    own = {
        "model__name": str(model),
        "dataset__name": "table",
        "dataset__path": str(data),
        "dataset__partitioner": "NaturalIdPartitioner",
        "learning_rate": 0.01,
        "local_epochs": 4,
        "num_server_rounds": 4,
        "batch_size": 8,
    }
    return RunConfig.parse(run_config(**own | changes))


@pytest.mark.parametrize("exchange", ["lowrank", "embeddings"])
def test_clients_learn_to_tell_tones_that_they_have_not_heard(
    exchange: str, run_config: Config, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = of_sounds(
        run_config,
        family_folder("qwen2_audio"),
        write_rows(tmp_path),
        exchange__kind=exchange,
    )
    folder = run_in_process(config, clients=2)
    first, last = folder.rounds[0], folder.rounds[-1]
    assert last["test_loss"] < 0.7 * first["test_loss"]
    assert last["accuracy"] > 0.85 and first["accuracy"] < 0.7
    assert last["accuracy_by"]["with sound"]["questions"] == 32
    saved = json.loads((folder.path / "adapters" / "last" / "adapter_config.json").read_text())
    assert sorted(saved["target_modules"]) == ["audio_adapter", "text_adapter"]


def test_a_client_of_pictures_and_one_of_sounds_learn_both(
    run_config: Config, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_rows(tmp_path, pictures_of="a")
    config = of_sounds(run_config, family_folder("gemma4"), data, learning_rate=0.02)
    folder = run_in_process(config, clients=2)
    first, last = (folder.rounds[place]["accuracy_by"] for place in (0, -1))
    for kind in ("with picture (IMG)", "with sound"):
        assert last[kind]["questions"] == 16
        assert last[kind]["accuracy"] > 0.85, (kind, first)


def test_a_site_that_the_model_lacks_is_refused_before_the_llm_is_loaded(
    run_config: Config, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, data = family_folder("qwen2_audio"), write_rows(tmp_path)
    config = of_sounds(run_config, model, data, adapter__sites="image,text")
    with pytest.raises(ConfigError, match=r"adapter.sites = 'image,text'.*text, audio"):
        validate(config)
    for sites in ("all", "audio", "text,audio"):
        validate(of_sounds(run_config, model, data, adapter__sites=sites))


def test_a_sound_that_cannot_be_heard_costs_its_row(
    run_config: Config,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_rows(tmp_path)
    (data / "0.wav").write_bytes(b"no sound")
    (data / "2.wav").write_bytes(as_file(tone(300, 1.5)))  # the tiny model hears a second
    config = of_sounds(
        run_config,
        family_folder("qwen2_audio"),
        data,
        num_server_rounds=0,
        dataset__max_skipped=0.1,
    )
    run_in_process(config, clients=2)
    said = capsys.readouterr().out
    assert "1 questions: sound cannot be decoded (train.jsonl:1)" in said
    assert "a sound is longer than the 1 s that the model hears (train.jsonl:3)" in said
