"""Whether a run continues an earlier one, and in which folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fednano_flwr.base.lock import LOCK, FolderLock, LockedError
from fednano_flwr.config import ConfigError, RunConfig, keys

NEVER, AUTO = "never", "auto"


def folder_of(config: RunConfig) -> Path:
    """The run's folder; a path that does not exist yet if the config names none."""
    if config.resume not in (NEVER, AUTO):
        return Path(config.resume).expanduser().resolve()
    parent = Path(config.run.dir).expanduser().resolve()
    if config.run.name:
        return (parent / config.run.name).resolve()
    name = time.strftime(f"%Y%m%d-%H%M%S-{config.strategy.name}")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not os.path.lexists(parent / name))


@contextmanager
def run_folder_of(config: RunConfig) -> Iterator[Path]:
    """The run's folder, made new if the config does not name it.

    If it is still empty when the block ends, it is removed, with the parents made for it.

    Raises:
        ConfigError: it cannot be made.
    """
    while True:
        folder = folder_of(config)
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            if config.resume == NEVER and not config.run.name:
                folder.mkdir(parents=True)
            break
        except FileExistsError:  # another run was faster
            continue
        except OSError as error:
            raise ConfigError(
                f"run.dir = {config.run.dir!r}: {folder} cannot be made: {error}"
            ) from None
    try:
        yield folder
    finally:
        with suppress(OSError, LockedError):  # somebody else has begun a run in it
            if folder.is_dir() and not _names(folder):
                FolderLock(folder, lambda line: None).release()  # takes the lock's file along
                for one in made:
                    one.rmdir()


def continues(config: RunConfig, folder: Path) -> bool:
    """Whether `folder` has a run to be continued.

    Raises:
        ConfigError: there is a run without `resume`, none with it, or one of another config.
    """
    there = bool(_names(folder))
    if config.resume == NEVER:
        if there:
            raise ConfigError(
                f"run.name = {config.run.name!r}: {folder} holds an earlier run; choose another "
                'name, or go on with it: resume = "auto"'
            )
        return False
    if not there:
        if config.resume == AUTO:
            return False
        raise ConfigError(f"resume = {config.resume!r}: there is no run in {folder}")
    _check_agrees(config, folder)
    return True


def digest_of(config: RunConfig) -> str:
    """A hash of the keys that must be the same in a resumed run."""
    text = json.dumps(_fixed(config.flat()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_agrees(config: RunConfig, folder: Path) -> None:
    file = folder / "config.json"
    if _names(folder) <= {"config.partial"}:
        return  # the run was stopped while it made its folder
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(earlier, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"resume = {config.resume!r}: {file} cannot be read ({error}); is {folder} a run's "
            "folder?"
        ) from None
    earlier, now = _fixed(earlier), _fixed(config.flat())
    differing = [
        f"{key} was {_shown(earlier, key)} and is {_shown(now, key)}"
        for key in sorted(earlier.keys() | now.keys())
        if _shown(earlier, key) != _shown(now, key)
    ]
    if differing:
        raise ConfigError(
            f"resume = {config.resume!r}: the run in {folder} has another config: "
            + ", ".join(differing)
            + ". Set that back to continue the run, or start another one with another run.name"
        )


def _names(folder: Path) -> set[str]:
    """Names in a folder, without the lock's."""
    return {path.name for path in folder.iterdir()} - {LOCK} if folder.is_dir() else set()


def _fixed(flat: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that may differ in a resumed run."""
    known = keys()
    return {
        key: value for key, value in flat.items() if not (key in known and known[key].resumable)
    }


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not there"
