"""What the run config names and only this machine knows, checked before anything is started."""

from __future__ import annotations

from pathlib import Path

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.resources import ResourceError, resolve


def validate(config: RunConfig) -> None:
    """Check that data set, its folder, strategy and model are there, and the run's folder is not.

    A data set that a module writes (`module:NAME`) is written here, once for all clients.

    Raises:
        ConfigError: otherwise; the message says what there is.
    """
    # Imported here: they bring torch and Flower, which `fednano --help` must not wait for.
    from fednano_flwr.data.registry import DATASETS
    from fednano_flwr.models.checkpoint import check_model
    from fednano_flwr.strategies.registry import check_strategy

    if config.dataset.name not in DATASETS:
        names = ", ".join(sorted(DATASETS))
        raise ConfigError(f"dataset.name = {config.dataset.name!r}: must be one of {names}")
    check_strategy(config.strategy.name, config.strategy.args)
    check_model(config.model.name)
    _check_run_folder(config.run.dir, config.run.name)
    _check_folder(config.dataset.path)


def _check_run_folder(folder: str, name: str) -> None:
    path = Path(folder) / name
    if name and path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"run.name = {name!r}: {path} holds an earlier run; choose another name")


def _check_folder(path: str) -> None:
    try:
        folder = resolve("dataset.path", path)
    except ResourceError as error:
        raise ConfigError(str(error)) from None
    if not folder.is_dir():
        raise ConfigError(
            f"dataset.path = {path!r}: there is no folder {folder}; docs/data.md says where the "
            "data sets come from and how their folders look"
        )
