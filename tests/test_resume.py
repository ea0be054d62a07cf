"""Runs that were stopped somewhere and go on as if they had not been."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvgM
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.rounds.records import from_arrays, to_arrays
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs.checkpoint import CheckpointError
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.server_app import MergeError
from tests.local_grid import LocalGrid
from tests.outcome import adapters, assert_same, assert_same_outcome, half_written, lines

Config = Callable[..., dict[str, Any]]
SMALL: dict[str, Any] = {"num_server_rounds": 3, "local_epochs": 1}


class KilledError(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def run(flat: dict[str, Any], run_id: int = 1, order: int = 0) -> RunFolder:
    grid = LocalGrid(client_app.app, flat, 3, order=order, run_id=run_id)
    return server_app.federate(grid, run_id, RunConfig.parse(flat))


def killing(healthy: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    def instead(*args: Any, **keys: Any) -> Any:
        if when(*args):
            raise KilledError
        return healthy(*args, **keys)

    return instead


def in_training(patch: pytest.MonkeyPatch, server_round: int) -> None:
    """One client has trained and kept what is its own, the next one begins."""
    begun = []

    def second(client: Any, theta: Any, llm: Any, number: int, work: Any) -> bool:
        begun.append(number)
        return begun.count(server_round) == 2

    patch.setattr(client_app.Client, "train", killing(client_app.Client.train, second))


def before_the_folder(patch: pytest.MonkeyPatch, server_round: int) -> None:
    def of_round(folder: Any, record: dict[str, Any], *rest: Any) -> bool:
        return record["round"] == server_round

    patch.setattr(RunFolder, "append", killing(RunFolder.append, of_round))


def before_the_checkpoint(patch: pytest.MonkeyPatch, server_round: int) -> None:
    def of_round(folder: Path, checkpoint: Any, keep: int) -> bool:
        return checkpoint.round == server_round

    patch.setattr(checkpoints, "write", killing(checkpoints.write, of_round))


def in_the_checkpoint(patch: pytest.MonkeyPatch, server_round: int) -> None:
    def its_second_file(file: Path, data: bytes) -> bool:
        return file.match(f".round-{server_round:05d}.partial/strategy.safetensors")

    patch.setattr(checkpoints, "write_synced", killing(checkpoints.write_synced, its_second_file))


def after_the_checkpoint(patch: pytest.MonkeyPatch, server_round: int) -> None:
    def of_round(record: dict[str, Any], label: str) -> bool:
        return record["round"] == server_round

    patch.setattr(server_app, "round_line", killing(server_app.round_line, of_round))


KILLS = (
    (before_the_checkpoint, 0),
    (in_training, 2),
    (before_the_folder, 2),
    (in_the_checkpoint, 2),
    (after_the_checkpoint, 2),
)


def killed(flat: dict[str, Any], how: Callable[..., None], when: int, run_id: int = 1) -> None:
    with pytest.MonkeyPatch.context() as patch:
        how(patch, when)
        with pytest.raises(KilledError):
            run(flat, run_id, order=run_id)


def kept_in_last_round(flat: dict[str, Any], run_id: int) -> dict[str, dict[str, torch.Tensor]]:
    folder = Path(flat["edge.state-dir"]) / str(run_id)
    return {
        str(file.relative_to(folder)): load_file(file)
        for file in folder.rglob(f"*.{flat['num-server-rounds']}.safetensors")
    }


KEEPING = ("locft", "feddpa-f", "fednano-ef", "rolora")
"""Those of the runs below whose clients keep adapters or what rounding left."""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"strategy__name": "fedavg-exact"}, marks=pytest.mark.slow),
        pytest.param(
            {"strategy__name": "FedAdam", "strategy__args": "eta=0.01"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"strategy__name": "FedAvgM", "strategy__args": "server_momentum=0.9"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"strategy__name": "locft", "fraction_train": 0.67}, marks=pytest.mark.slow),
        pytest.param(
            {"strategy__name": "feddpa-f", "strategy__local_rank": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"strategy__name": "rolora", "upload__adapters": "int8"}, marks=pytest.mark.slow
        ),
        pytest.param({"strategy__name": "fedsvd"}, marks=pytest.mark.slow),
        pytest.param({"strategy__name": "fedrot-lora"}, marks=pytest.mark.slow),
        pytest.param({"strategy__name": "fedex"}, marks=pytest.mark.slow),
        {"strategy__name": "accumulate"},
        pytest.param(
            {"strategy__name": "fedavg", "adapter__sites": "text,llm"}, id="inside the LLM"
        ),
        {"strategy__name": "fednano-ef", "upload__adapters": "int4", "fraction_train": 0.67},
    ],
    ids=lambda settings: settings["strategy__name"],
)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(
    run_config: Config, settings: dict[str, Any]
) -> None:
    straight = run_config(run__name="straight", **SMALL, **settings)
    expected = run(straight)
    flat = run_config(run__name="shaken", resume="auto", **SMALL, **settings)
    for run_id, (how, when) in enumerate(KILLS, start=1):
        killed(flat, how, when, run_id)
    last = len(KILLS) + 1
    found = run(flat, last, order=last)
    assert found.resumed is not None and found.resumed.round == 2
    assert_same_outcome(found.path, expected.path)
    kept, wanted = kept_in_last_round(flat, last), kept_in_last_round(straight, 1)
    assert set(kept) == set(wanted)
    for file, tensors in wanted.items():
        assert_same(kept[file], tensors)
    assert bool(wanted) == (settings["strategy__name"] in KEEPING)
    starts = json.loads((found.path / "environment.json").read_text())["resumed"]
    assert [start["after_round"] for start in starts] == [1, 1, 1, 2]
    assert half_written(found.path, Path(flat["edge.state-dir"])) == []
    cut = (found.path / "metrics-cut.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in cut] == [0, 2]


@pytest.fixture
def stopped(run_config: Config) -> dict[str, Any]:
    """The config of a run of two rounds that was stopped after the checkpoint of the first."""
    flat = run_config(local_epochs=1, strategy__name="locft")
    killed(flat, after_the_checkpoint, 1)
    return flat


def path(flat: dict[str, Any]) -> Path:
    return Path(flat["run.dir"]) / flat["run.name"]


def rounds(flat: dict[str, Any]) -> list[str]:
    return sorted(place.name for place in (path(flat) / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("truncated", marks=pytest.mark.slow),
        pytest.param("missing", marks=pytest.mark.slow),
        pytest.param("flipped", marks=pytest.mark.slow),
        "state",
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    run_config: Config, stopped: dict[str, Any], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = path(stopped) / "checkpoints" / "round-00001" / "adapters.safetensors"
    data = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(data[:-8])
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        file.with_name("state.json").write_text('{"round": 1')
    folder = run({**stopped, "resume": "auto"}, run_id=2, order=2)
    assert folder.resumed is not None and folder.resumed.round == 0
    said = capsys.readouterr().out
    assert "round-00001 is damaged" in said and "going back to the one before" in said
    straight = run(run_config(run__name="straight", local_epochs=1, strategy__name="locft"))
    assert lines(folder.path) == lines(straight.path)
    assert rounds(stopped) == ["round-00001", "round-00002"]


def test_where_all_checkpoints_are_damaged_nothing_goes_on(stopped: dict[str, Any]) -> None:
    for file in (path(stopped) / "checkpoints").glob("*/state.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used"):
        run({**stopped, "resume": "auto"}, run_id=2)


def test_another_config_is_refused_with_the_keys_that_differ(stopped: dict[str, Any]) -> None:
    changed = {"resume": "auto", "learning-rate": 0.5, "seed": 7, "round-timeout": 60.0}
    with pytest.raises(ConfigError) as caught:
        run({**stopped, **changed}, run_id=2)
    said = str(caught.value)
    assert "learning-rate was 0.002 and is 0.5" in said and "seed was 0 and is 7" in said
    assert "round-timeout" not in said and "resume was" not in said


def test_without_resume_the_folder_of_a_stopped_run_is_refused(stopped: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(stopped, run_id=2)


def test_auto_begins_a_run_where_there_is_none(run_config: Config) -> None:
    folder = run(run_config(resume="auto", num_server_rounds=0))
    assert folder.resumed is None and [record["round"] for record in folder.rounds] == [0]


def test_auto_without_a_name_is_refused(run_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"resume = 'auto'.*run\.name"):
        RunConfig.parse(run_config(resume="auto", run__name=""))


def test_a_folder_is_continued_by_its_path(stopped: dict[str, Any], tmp_path: Path) -> None:
    elsewhere = {"run.name": "", "run.dir": str(tmp_path / "other")}
    folder = run({**stopped, **elsewhere, "resume": str(path(stopped))}, run_id=2)
    assert folder.path == path(stopped) and folder.finished
    with pytest.raises(ConfigError, match="there is no run in"):
        run({**stopped, "resume": str(tmp_path / "nowhere")}, run_id=3)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        run({**stopped, "resume": stopped["dataset.path"]}, run_id=3)
    (folder.path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no JSON object"):
        run({**stopped, "resume": str(folder.path)}, run_id=3)


def test_a_finished_run_is_only_shown_again(
    stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flat = {**stopped, "resume": "auto"}
    first = run(flat, run_id=2)
    before = lines(first.path)
    capsys.readouterr()
    again = run({**flat, "round-timeout": 60.0}, run_id=3)
    said = capsys.readouterr().out
    assert "all rounds of this run are there already" in said and "written to" in said
    assert lines(again.path) == before and "resumed  after" not in said


def test_a_full_disk_ends_the_run_and_leaves_the_earlier_checkpoint(run_config: Config) -> None:
    def full(file: Path, data: bytes) -> bool:
        if file.match(".round-00001.partial/*"):
            raise OSError(28, "No space left on device")
        return False

    flat = run_config(local_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_synced", killing(checkpoints.write_synced, full))
        with pytest.raises(CheckpointError, match=r"round 1 could not .*No space left.*resume = "):
            run(flat)
    assert rounds(flat) == ["round-00000"]
    folder = run({**flat, "resume": "auto"}, run_id=2)
    straight = run(run_config(run__name="straight", local_epochs=1))
    assert_same(adapters(folder.path, "last"), adapters(straight.path, "last"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("FedAdam", "beta_1=1"), r"round 1.*strategy\.name = 'FedAdam'.*'beta_1=1'.*lora_A"),
        (("FedAvgM", "server_learning_rate=1e39"), r"round 1.*1e39.*theta\..*lora_"),
        (("FedYogi", "eta=1e300"), r"round 1.*'eta=1e300'.*theta\..*lora_"),
    ],
    ids=["nan", "inf", "float64"],
)
def test_a_merge_that_is_not_finite_ends_the_run_before_it_is_written_or_sent(
    run_config: Config, settings: tuple[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, args = settings
    flat = run_config(local_epochs=1, strategy__name=name, strategy__args=args)
    with pytest.raises(MergeError, match=named):
        run(flat)
    assert rounds(flat) == ["round-00000"]
    assert [line["round"] for line in lines(path(flat))] == [0]
    assert all(value.isfinite().all() for value in adapters(path(flat), "last").values())
    assert "round 1, evaluation" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("adapters", marks=pytest.mark.slow),
        "momentum",
        pytest.param("an error", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_a_merge_has_ended_goes_on_from_the_round_before(
    run_config: Config, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"strategy__name": "FedAvgM", "strategy__args": "server_momentum=0.9", **SMALL}
    expected = run(run_config(run__name="straight", **settings))
    healthy = FedAvgM.aggregate_train

    def spoilt(self: FedAvgM, server_round: int, replies: Any) -> Any:
        merged, metrics = healthy(self, server_round, replies)
        if server_round == 2 and what == "an error":
            raise ZeroDivisionError("division by zero")
        if server_round == 2 and what == "momentum":
            self.momentum_vector = [one * math.nan for one in self.momentum_vector or []]
        if server_round == 2 and what == "adapters":
            merged = to_arrays({k: v * math.nan for k, v in from_arrays(merged).items()})
        return merged, metrics

    flat = run_config(run__name="spoilt", resume="auto", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(FedAvgM, "aggregate_train", spoilt)
        said = {"adapters": "theta", "momentum": "momentum_vector", "an error": "ZeroDivision"}
        with pytest.raises(MergeError, match=f"round 2.*{said[what]}.*resume.*round 1"):
            run(flat)
    assert_same_outcome(run(flat, run_id=2).path, expected.path)


def test_a_checkpoint_whose_adapters_are_not_finite_is_passed_over(
    stopped: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    place = path(stopped) / "checkpoints"
    found = checkpoints.read(place / "round-00001")
    spoilt = {name: value * math.nan for name, value in found.theta.items()}
    checkpoints.write(place, replace(found, theta=spoilt), 2)
    folder = run({**stopped, "resume": "auto"}, run_id=2)
    assert folder.resumed is not None and folder.resumed.round == 0
    assert "round-00001 has adapters that are not finite" in capsys.readouterr().out


def test_as_many_checkpoints_are_kept_as_asked(run_config: Config) -> None:
    flat = run_config(run__keep_checkpoints=1, local_epochs=1)
    run(flat)
    assert rounds(flat) == ["round-00002"]


def test_what_a_killed_process_was_writing_is_gone_after_the_next_start(
    stopped: dict[str, Any],
) -> None:
    folder = path(stopped)
    for name in ("environment", "metrics-cut"):
        (folder / f"{name}.partial").touch()
    for name in (".round-00001.partial", ".round-00002.partial"):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "adapters.safetensors").touch()
    for name in ("last.new", "last.old", "best.old"):
        (folder / "adapters" / name).mkdir()
    (kept,) = Path(stopped["edge.state-dir"]).glob("1/client-0/*.1.safetensors")
    kept.with_name(f"{kept.name.split('.')[0]}.2.partial").touch()
    flat = {**stopped, "resume": "auto"}
    run(flat, run_id=2)
    assert half_written(folder, Path(stopped["edge.state-dir"])) == []


def test_a_checkpoint_that_was_half_removed_is_removed_when_the_run_is_shown_again(
    run_config: Config,
) -> None:
    flat = run_config(local_epochs=1)
    run(flat)
    half = path(flat) / "checkpoints" / "round-00000"
    half.mkdir()
    (half / "adapters.safetensors").touch()
    run({**flat, "resume": "auto"}, run_id=2)
    assert rounds(flat) == ["round-00001", "round-00002"]
