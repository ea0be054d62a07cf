"""What `-c` on the command line changes: `key=value` and TOML files over the app's defaults."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fednano_flwr.config import ConfigError, RunConfig, check_keys, key_types, keys
from fednano_flwr.config.project import defaults, flatten, read_toml

_ASSIGNMENT = re.compile(r"\s*([\w.-]+)\s*=(.*)", re.DOTALL)
_PREFIXES = ("package:", "module:")


def parse_config(app: Path, overrides: Sequence[str], cwd: Path) -> RunConfig:
    """The app's defaults with `overrides` over them, the last one winning.

    Relative paths are made absolute: the ServerApp and the clients run in another folder.

    Raises:
        ConfigError: a key or value that cannot be used; it names them.
    """
    given: dict[str, Any] = {}
    for text in overrides:
        given |= parse_override(text, cwd)
    config = RunConfig.parse(absolute_paths({**defaults(app), **given}, cwd))
    _check_text(config)
    return config


def _check_text(config: RunConfig) -> None:
    """Refuse paths whose bytes are no UTF-8: what a run writes down is."""
    for key, value in config.flat().items():
        if isinstance(value, str) and value != value.encode(errors="replace").decode():
            raise ConfigError(f"{key} = {value!r}: is not UTF-8; rename the file or folder")


def parse_override(text: str, cwd: Path) -> dict[str, Any]:
    """Flat keys of one `-c`: `key=value`, the value in TOML or bare text, or a .toml file.

    Raises:
        ConfigError: neither of both, an unknown key, or a file that cannot be read.
    """
    match = _ASSIGNMENT.fullmatch(text)
    file = cwd / Path(text).expanduser()
    if match and not (text.endswith(".toml") and file.is_file()):
        flat = flatten({match[1]: _value(match[1], match[2].strip())})
        check_keys(flat)
    elif text.endswith(".toml"):
        flat = flatten(read_toml(file))
        try:
            check_keys(flat)
        except ConfigError as error:
            raise ConfigError(f"{text}: {error}") from None
    else:
        raise ConfigError(f"-c {text}: give key=value or a file that ends in .toml")
    for key, value in flat.items():
        if isinstance(value, list):
            raise ConfigError(f"{key} = {value!r}: lists cannot be used; join names by commas")
    return flat


def absolute_paths(flat: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """Paths relative to `cwd` made absolute; hub ids and `package:`, `module:` stay as they are."""
    result = dict(flat)
    for key, declaration in keys().items():
        value = result.get(key)
        if not declaration.path or not isinstance(value, str) or not value:
            continue
        if value.startswith(_PREFIXES):
            continue
        path = cwd / Path(value).expanduser()
        if declaration.path == "yes" or path.is_dir() or (path.suffix and path.is_file()):
            result[key] = str(path)
    return result


def _value(key: str, text: str) -> Any:
    """A TOML value, or the text itself where it is none or where the key wants a text."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[:1] in ('"', "'", "[", "{"):
            raise ConfigError(f"-c {key}={text}: not valid TOML: {error}") from None
        return text
    value = table["value"]
    if len(table) > 1:
        raise ConfigError(f"-c {key}: holds more than one line; repeat -c instead")
    if key_types().get(key) is str and not isinstance(value, str | list):
        return text
    return value
