"""Trackers by name, and all trackers of a run as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from fednano_flwr.config import TRACKERS, ConfigError
from fednano_flwr.trackers.base import Tracker, scalars

CLASSES: Mapping[str, tuple[str, str]] = {
    "mlflow": ("fednano_flwr.trackers.mlflow", "MLflow"),
    "tensorboard": ("fednano_flwr.trackers.tensorboard", "TensorBoard"),
    "trackio": ("fednano_flwr.trackers.trackio", "Trackio"),
    "wandb": ("fednano_flwr.trackers.wandb", "WandB"),
}
assert set(CLASSES) == set(TRACKERS)


class Trackers:
    """Logs each round's figures to all trackers of a run.

    They are opened at the first figures, so that a run without any creates nothing. A tracker that
    fails is not used again; a line says so, and the run goes on.

    Args:
        openers: open each, by its name.
        say: prints one line.
    """

    def __init__(
        self, openers: Mapping[str, Callable[[], Tracker]], say: Callable[[str], None]
    ) -> None:
        self._openers = dict(openers)
        self._opened: dict[str, Tracker] = {}
        self._say = say

    def log(self, record: Mapping[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        values = scalars(record)
        for name in list(self._openers):
            with self._leaving_out(name):
                if name not in self._opened:
                    self._opened[name] = self._openers[name]()
                self._opened[name].log(int(record["round"]), values)

    def close(self, completed: bool = True) -> None:
        """Close the trackers; `completed`: whether the run completed."""
        for name, tracker in list(self._opened.items()):
            with self._leaving_out(name):
                tracker.close(completed)

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._openers.pop(name)
            with suppress(Exception):  # as far as it still can
                if name in self._opened:
                    self._opened.pop(name).close(completed=False)
            self._say(f"tracker {name} is left out from now on: {_line(error)}")


def tracker_classes(names: str) -> dict[str, Callable[..., Tracker]]:
    """The classes that `run.trackers` names.

    Raises:
        ConfigError: one of them is not installed.
    """
    found = {}
    for name in filter(None, names.split(",")):
        module, kind = CLASSES[name]
        try:
            found[name] = getattr(import_module(module), kind)
        except ImportError as error:
            raise ConfigError(
                f"run.trackers names {name}, which is not installed ({_line(error)}): pip install "
                f'"fednano-flwr[{name}]"'
            ) from error
    return found


@contextmanager
def open_trackers(
    names: str,
    folder: Path,
    config: Mapping[str, Any],
    first_round: int,
    say: Callable[[str], None],
) -> Iterator[Trackers]:
    """The trackers that `run.trackers` names, closed after the block.

    Args:
        folder: of the run; its name is the run's name at the tracker.
        config: flat keys, logged with the run.
        first_round: above 0 in a resumed run.

    Raises:
        ConfigError: one of them is not installed.
    """
    openers: dict[str, Callable[[], Tracker]] = {
        name: partial(made, folder, config, first_round)
        for name, made in tracker_classes(names).items()
    }
    trackers = Trackers(openers, say)
    completed = False
    try:
        yield trackers
        completed = True
    finally:
        trackers.close(completed)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
