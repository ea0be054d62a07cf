"""The app folder: which one is run, and the defaults that its pyproject.toml holds."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, RunConfig

NAME = "fednano-flwr"
PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "app"  # what a wheel has of the app's folder; a checkout has none


def find_app(app: Path | None, cwd: Path) -> Path:
    """The folder given, else the current one if it is FedNano, else the one installed from.

    Raises:
        ConfigError: none of them has a pyproject.toml of an app.
    """
    if app is not None:
        folder = (cwd / app.expanduser()).resolve()
        if not (folder / "pyproject.toml").is_file():
            raise ConfigError(f"--app {app}: there is no pyproject.toml in {folder}")
        return folder
    for folder in (cwd, PACKAGE.parent, INSTALLED):
        if _name(folder) == NAME:
            return folder
    raise ConfigError(
        f"no app to run: neither {cwd} nor {PACKAGE.parent} is a checkout of {NAME}. Give its "
        "folder with --app"
    )


def with_code(app: Path, beside: Path) -> Path:
    """An app's folder as Flower packs it: a wheel's has its code elsewhere, and is copied together.

    Args:
        beside: an existing folder for the copy.
    """
    if app != INSTALLED:
        return app
    whole = beside / "app"
    shutil.copytree(app, whole)
    only_code = shutil.ignore_patterns("__pycache__", app.name)
    shutil.copytree(PACKAGE, whole / PACKAGE.name, ignore=only_code)
    return whole


def defaults(app: Path) -> dict[str, Any]:
    """The app's run config, `[tool.flwr.app.config]`, as flat keys.

    Raises:
        ConfigError: the file is not valid TOML or has no such table.
    """
    file = app / "pyproject.toml"
    try:
        return flatten(read_toml(file)["tool"]["flwr"]["app"]["config"])
    except KeyError:
        raise ConfigError(f"{file} has no table [tool.flwr.app.config]") from None


def default_config(changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The run config with the defaults of pyproject.toml, but for `changes` by their flat keys.

    Raises:
        ConfigError: a key is unknown, of the wrong type or out of range.
    """
    app = find_app(None, PACKAGE.parent)
    return RunConfig.parse(defaults(app) | dict(changes or {}))


def read_toml(file: Path) -> dict[str, Any]:
    """
    Raises:
        ConfigError: there is no such file, or it is not valid TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from None


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"dataset": {"alpha": 1}}` and `{"dataset.alpha": 1}` both as `{"dataset.alpha": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _name(folder: Path) -> str | None:
    """`[project] name` in a folder, None where there is none to be read."""
    try:
        return read_toml(folder / "pyproject.toml").get("project", {}).get("name")
    except ConfigError:
        return None
