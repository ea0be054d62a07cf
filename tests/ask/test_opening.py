"""What asking takes of a run's config, of the machine and of the adapters, and what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fednano_flwr.ask.here import PICTURES, Here, LastFeatures
from fednano_flwr.ask.opening import Service, open_asker
from fednano_flwr.ask.serve import llm_config, serving
from fednano_flwr.cli.app import cli
from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.protocol import HostBusyError, HostRefusedError, HostUnreachableError
from tests.ask.conftest import Asked
from tests.conftest import REPOSITORY

CHOICES = ("w30", "w31", "w32")
QUESTION = "w20 w21 w22 ?"


def changed(asked: Asked, folder: Path, **changes: Any) -> Path:
    """The run with another config (`__` for a dot, `_` for a hyphen)."""
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    folder.mkdir()
    for file in asked.run.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "config.json").unlink()
    config = json.loads((asked.run / "config.json").read_text())
    assert keys.keys() <= config.keys()
    (folder / "config.json").write_text(json.dumps(config | keys))
    return folder


def shares(asker: Any, picture: Path) -> tuple[float, ...]:
    return asker.answer(QUESTION, picture, CHOICES).probabilities


def test_a_run_of_a_gpu_says_without_one_how_it_can_be_asked(asked: Asked, tmp_path: Path) -> None:
    run = changed(asked, tmp_path / "gpu", edge__device="cuda:99", llm__device="cuda:99")
    with pytest.raises(ConfigError, match=r"edge\.device = 'cuda:99'.*-c edge\.device=cpu"):
        with open_asker(run):
            pass
    with open_asker(run, config=["edge.device=cpu", "llm.device=cpu"]) as asker:
        assert shares(asker, asked.picture)


def test_a_run_of_a_gpu_needs_none_for_the_half_that_a_service_has(
    asked: Asked, tmp_path: Path, service: Service
) -> None:
    run = changed(asked, tmp_path / "gpu", llm__device="cuda:99")
    with open_asker(run, service=service) as asker:
        assert shares(asker, asked.picture)


def test_a_service_on_a_device_that_is_not_there_is_refused(tiny_model: Path) -> None:
    found = CliRunner().invoke(cli, ["serve", str(tiny_model), "--device", "cuda:99"])
    assert found.exit_code == 2 and "--device cpu" in found.stderr


def test_threads_are_pytorchs_own_unless_given_and_afterwards_as_before(
    asked: Asked, tiny_model: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    run = changed(asked, tmp_path / "three", edge__threads=3, llm__threads=3)
    with open_asker(run):
        assert torch.get_num_threads() == before
    for key in ("edge.threads", "llm.threads"):
        with open_asker(run, config=[f"{key}=2"]):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == before
    assert llm_config(REPOSITORY, {}, [], tmp_path).threads == 0
    given = llm_config(REPOSITORY, {}, ["llm.threads=2"], tmp_path)
    with serving(str(tiny_model), given, tmp_path / "token", lambda line: None):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_a_refusal_in_this_process_is_the_one_of_a_service() -> None:
    class Refusing:
        def __init__(self, error: Exception) -> None:
            self._error = error

        def prefill(self, tokens: int, owner: bytes) -> None:
            raise self._error

    for error, wanted in (
        (ValueError("too long"), HostRefusedError),
        (HostBusyError("closing"), HostUnreachableError),
        (LookupError("lost"), LookupError),
    ):
        with pytest.raises(wanted, match=str(error)):
            Here(Refusing(error)).prefill(1)  # type: ignore[arg-type]


def test_an_answer_may_be_longer_than_the_datas_and_it_is_said_where_it_was_cut(
    asked: Asked, tmp_path: Path
) -> None:
    for longest, config, wanted in ((8, [], 64), (99, [], 99), (8, ["max-answer-tokens=5"], 5)):
        run = changed(asked, tmp_path / str((longest, wanted)), max_answer_tokens=longest)
        with open_asker(run, config=config) as asker:
            assert asker.max_tokens == wanted
    with open_asker(asked.run, max_tokens=2) as asker:
        whole = asker.answer(QUESTION)
        assert whole.cut and len(whole.text.split()) == 2
    found = CliRunner().invoke(cli, ["ask", str(asked.run), "--max-tokens", "2", QUESTION])
    assert found.exit_code == 0 and found.stdout.strip() == whole.text
    assert "note: cut after 2 tokens; --max-tokens N lets it go on\n" in found.stderr
    enough = CliRunner().invoke(cli, ["ask", str(asked.run), "--choices", "w30;w31", QUESTION])
    assert enough.exit_code == 0 and "cut" not in enough.stderr


def test_more_tokens_than_the_model_was_made_for_are_noted(asked: Asked) -> None:
    with open_asker(asked.run, max_tokens=128) as asker:
        asker.tuned.encoder.ends = set()
        (cut, long) = asker.answer(QUESTION).notes
        assert "cut after 128" in cut and "made for 128 (max_position_embeddings)" in long
        asker.max_tokens = 20
        (cut,) = asker.answer(QUESTION).notes
        (long,) = asker.answer("w20 " * 128, choices=CHOICES).notes
        assert "nonsense" in long


def test_adapters_other_than_those_that_were_scored_are_said_to_be_so(
    asked: Asked, tmp_path: Path
) -> None:
    for name, changes, wanted in (
        ("own", {"strategy__name": "feddpa-f"}, "Each client has its own beside them"),
        ("wide", {"adapter__ranks": "4,2"}, "adapters of ranks 4,2 .* here they are at full rank"),
    ):
        said: list[str] = []
        with open_asker(changed(asked, tmp_path / name, **changes), say=said.append):
            pass
        (caveat,) = said
        assert re.search(wanted, caveat)


def test_features_of_the_last_pictures_are_kept_and_no_more(asked: Asked) -> None:
    features = LastFeatures(2)
    for key in "ab":
        features[key] = torch.ones(1)
    assert features.get("a") is not None  # asked about again
    features["c"] = torch.ones(1)
    assert features.get("b") is None and features.get("a") is not None
    with open_asker(asked.run) as asker:
        cache = asker.tuned.cache
        assert cache is asker.frozen.cache and isinstance(cache, LastFeatures)
        shares(asker, asked.picture)
        assert asker.tuned.encoded == 1
        asker.answer(QUESTION, asked.picture, CHOICES, frozen=True)
        assert asker.frozen.encoded == 0
        for number in range(2 * PICTURES):
            cache[str(number)] = torch.ones(1)
        assert len(cache._kept) == PICTURES
