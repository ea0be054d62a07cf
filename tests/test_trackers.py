"""Figures of a run at other people's tools, while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.in_process import run_in_process
from fednano_flwr.results import load_run
from fednano_flwr.trackers import registry
from fednano_flwr.trackers.base import scalars
from fednano_flwr.trackers.registry import Trackers, open_trackers

Config = Callable[..., dict[str, Any]]
RECORD = {"round": 2, "accuracy": 0.5, "train_loss": None, "client": {"3": 1}, "list": [1.0]}


class Kept:
    """A tracker that keeps what it is given, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self._fails = fails

    def log(self, step: int, values: Any) -> None:
        if self._fails:
            raise OSError("the network is gone")
        self.logged.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


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
    assert bad.closed  # as far as it still can be


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


@pytest.mark.parametrize(
    ("name", "module", "variables"),
    [
        ("wandb", "wandb", {"WANDB_MODE": "offline"}),
        ("mlflow", "mlflow", {"MLFLOW_TRACKING_URI": "sqlite:///{}/mlflow.db"}),
        ("trackio", "trackio", {"TRACKIO_DIR": "{}"}),
    ],
)
def test_other_trackers_take_a_runs_figures_on_this_machine(
    name: str,
    module: str,
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(module, reason=f"{name} is an extra that is not installed here")
    for key, value in variables.items():
        monkeypatch.setenv(key, value.format(tmp_path))
    said: list[str] = []
    with open_trackers(name, tmp_path, {"seed": 1}, 0, said.append) as trackers:
        trackers.log(RECORD)
    assert not said
