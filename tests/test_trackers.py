"""Figures of a run at other people's tools, while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.runs.results import load_run
from fednano_flwr.trackers import registry
from fednano_flwr.trackers.base import scalars
from fednano_flwr.trackers.registry import Trackers, open_trackers

Config = Callable[..., dict[str, Any]]
RECORD = {"round": 2, "accuracy": 0.5, "train_loss": None, "client": {"3": 1}, "list": [1.0]}


class Kept:
    """A tracker that keeps what it is given, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed: bool | None = None
        self._fails = fails

    def log(self, step: int, values: Any) -> None:
        if self._fails:
            raise OSError("the network is gone")
        self.logged.append((step, dict(values)))

    def close(self, completed: bool = True) -> None:
        self.closed = completed


def test_the_numbers_of_a_record_are_named_by_their_path() -> None:
    assert scalars(RECORD) == {"accuracy": 0.5, "client/3": 1.0}


def test_a_tracker_that_fails_is_left_out_once_and_costs_the_others_nothing() -> None:
    said: list[str] = []
    good, bad = Kept(), Kept(fails=True)
    trackers = Trackers({"bad": lambda: bad, "good": lambda: good}, said.append)
    trackers.log(RECORD)
    trackers.log({**RECORD, "round": 3})
    trackers.close()
    assert [step for step, _ in good.logged] == [2, 3] and good.closed
    assert said == ["tracker bad is left out from now on: OSError: the network is gone"]
    assert bad.closed is False  # as far as it still can be


def test_a_tracker_hears_whether_the_run_went_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [Kept(), Kept()]
    made = iter(opened)
    monkeypatch.setattr(
        registry, "tracker_classes", lambda names: {"kept": lambda *arguments: next(made)}
    )
    with open_trackers("kept", tmp_path, {}, 0, print) as good:
        good.log(RECORD)
    with pytest.raises(ZeroDivisionError), open_trackers("kept", tmp_path, {}, 0, print) as bad:
        bad.log(RECORD)
        raise ZeroDivisionError
    assert [tracker.closed for tracker in opened] == [True, False]


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.CLASSES, "wandb", ("fednano_flwr.trackers.nowhere", "WandB"))
    with pytest.raises(ConfigError, match=r'pip install "fednano-flwr\[wandb\]"'):
        with open_trackers("wandb", tmp_path, {}, 0, print):
            pass


def test_an_unknown_tracker_is_refused_with_those_there_are(run_config: Config) -> None:
    with pytest.raises(ConfigError, match=r"run.trackers.*tensorboard, trackio, wandb"):
        RunConfig.parse(run_config(run__trackers="tensorbord"))


def test_tensorboard_shows_a_runs_accuracy_round_by_round(run_config: Config) -> None:
    config = RunConfig.parse(run_config(run__trackers="tensorboard", num_server_rounds=1))
    folder = run_in_process(config, 2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("accuracy")}
    expected = {r["round"]: pytest.approx(r["accuracy"]) for r in load_run(folder.path).rounds}
    assert shown == expected
    assert "peak_memory_mb/server_process" in events.Tags()["scalars"]


History = dict[int, dict[str, float]]
Found = list[tuple[str, str, History]]
"""Of each run at a tool: its name, its seed as text, and its figures by round."""


def from_wandb(place: Path) -> Found:
    """What lies in the runs' folders, as W&B's own command shows it."""
    found: Found = []
    for file in sorted(
        place.glob("*/wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_ctime
    ):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in lines.splitlines()]
        (run,) = (record["run"] for record in records if record["type"] == "run")
        history: History = {}
        for record in records:
            if record["type"] == "history":
                values = record["history"]["item"]
                own = {key: value for key, value in values.items() if not key.startswith("_")}
                history[values["_step"]] = own
        found.append((run["display_name"], str(run["config"]["update"]["seed"]), history))
    return found


def from_mlflow(place: Path) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("fednano")
    assert experiment is not None
    found: Found = []
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    for run in runs:
        assert run.info.status == "FINISHED"
        history: History = {}
        for key in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, key):
                history.setdefault(metric.step, {})[key] = metric.value
        found.append((run.info.run_name, run.data.params["seed"], history))
    return found


def from_trackio(place: Path) -> Found:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found: Found = []
    for run in trackio.Api().runs("fednano"):
        logs = SQLiteStorage.get_logs("fednano", run.name, run_id=run.id)
        history = {
            entry["step"]: {k: v for k, v in entry.items() if k not in ("step", "timestamp")}
            for entry in logs
        }
        found.append((run.name, str(run.config["seed"]), history))
    return found


def record_of(server_round: int, share: float) -> dict[str, Any]:
    loss = {} if server_round == 0 else {"train_loss": 1 / server_round}
    kinds = {"with picture (IMG)": share / 3, "grade 1/2": 0.1}
    return {"round": server_round, "accuracy": share + server_round, "by": kinds, **loss}


@pytest.mark.parametrize(
    ("name", "variables", "read", "kind"),
    [
        (
            "wandb",
            {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
            from_wandb,
            "by/with picture (IMG)",
        ),
        ("mlflow", {"MLFLOW_DISABLE_TELEMETRY": "true"}, from_mlflow, "by/with picture _IMG_"),
        ("trackio", {"TRACKIO_DIR": "{}"}, from_trackio, "by/with picture (IMG)"),
    ],
)
def test_other_trackers_keep_the_figures_of_runs_apart_and_whole(
    name: str,
    variables: dict[str, str],
    read: Callable[[Path], Found],
    kind: str,
    defaults: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in [key for key in os.environ if key.startswith(name.upper())]:
        monkeypatch.delenv(key)
    for key, value in variables.items():  # before the import, which may look at them
        monkeypatch.setenv(key, value.format(tmp_path))
    pytest.importorskip(name, reason=f"{name} is an extra that is not installed here")
    said: list[str] = []

    def opened(run: str, seed: int, first: int) -> AbstractContextManager[Trackers]:
        (tmp_path / run).mkdir(exist_ok=True)
        config = {**defaults, "seed": seed}
        return open_trackers(name, tmp_path / run, config, first, said.append)

    with opened("one", 1, 0) as one, opened("two", 2, 0) as two:  # at the same time
        for server_round in range(3):
            one.log(record_of(server_round, 0.5))
            two.log(record_of(server_round, 0.25))
    with opened("one", 1, 2) as resumed:  # after round 1 was done, round 2 is done again
        for server_round in (2, 3):
            resumed.log(record_of(server_round, 0.75))
    assert not said

    def expected(rounds: range, share: float) -> History:
        written = {r: scalars(record_of(r, share)) for r in rounds}
        return {
            r: {kind if "IMG" in key else key: value for key, value in values.items()}
            for r, values in written.items()
        }

    found = sorted(read(tmp_path), key=lambda run: (run[0], min(run[2])))
    assert found == [
        ("one", "1", expected(range(3), 0.5)),
        ("one", "1", expected(range(2, 4), 0.75)),
        ("two", "2", expected(range(3), 0.25)),
    ]
