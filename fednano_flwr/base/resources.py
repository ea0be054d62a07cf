"""Where a `model.name` or `dataset.path` lies on this machine.

A plain value is a local path (for models also a hub id). Two prefixes name things that come with
an installed Python package, so that an app bundle without data files still finds them:

    package:NAME/SUB     a folder inside an installed package
    module:NAME/SUB      a dataset that the module writes with `write_dataset(folder)`; it is
                         written once to the cache folder and read from there
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from pathlib import Path

from fednano_flwr.base.files import write_once


class ResourceError(ValueError):
    """A path, package or module named in the run config is not there."""


def cache_folder() -> Path:
    """`$FEDNANO_CACHE`, else `fednano` in the user's cache folder.

    Raises:
        ResourceError: neither is named, and the user has no home.
    """
    if folder := os.environ.get("FEDNANO_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fednano"
    except RuntimeError:  # a container's user that has no entry in /etc/passwd
        raise ResourceError("this user has no home: set FEDNANO_CACHE to a folder") from None


def resolve(key: str, value: str, write: bool = True) -> Path:
    """The folder that `value` names; it need not exist where `value` is a plain path.

    Args:
        write: whether a module's dataset is written where it has not been; otherwise its folder
            need not exist either, and the module is not imported.

    Raises:
        ResourceError: the package or module is not installed; `key` is named in the message.
    """
    kind, _, rest = value.partition(":")
    if kind not in ("package", "module") or not rest:
        return Path(value).expanduser()
    name, _, sub = rest.partition("/")
    source = _installed(key, value, name)
    if kind == "package":
        return source.parent / sub
    return _written_dataset(key, name, source, write) / sub


def _installed(key: str, value: str, name: str) -> Path:
    """File of an installed module, or of a package's `__init__`."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ResourceError(
            f"{key} = {value!r}: Python package {name} is not installed here; "
            f"install it or set {key} to a path"
        )
    return Path(spec.origin)


def _written_dataset(key: str, name: str, source: Path, write: bool) -> Path:
    """Cached dataset of a generator module, written anew when the module's package changed."""
    digest = hashlib.sha256()
    for file in sorted(source.parent.glob("*.py")):
        digest.update(file.read_bytes())
    target = cache_folder() / "datasets" / f"{name}-{digest.hexdigest()[:12]}"
    if target.exists() or not write:
        return target
    try:
        write_dataset = getattr(importlib.import_module(name), "write_dataset", None)
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"{key}: {name} needs package {error.name}, which is not here"
        ) from None
    if write_dataset is None:
        raise ResourceError(f"{key}: module {name} has no function write_dataset(folder)")
    try:
        write_once(target, write_dataset)
    except OSError as error:
        raise ResourceError(
            f"{key}: {name} cannot write its data set: {error}; set FEDNANO_CACHE to a folder with "
            "room"
        ) from error
    return target
