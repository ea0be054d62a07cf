"""Reads a run's folder: config, rounds and adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fednano_flwr.config import ConfigError, Model, RunConfig, key_types
from fednano_flwr.config.project import default_config
from fednano_flwr.config.sections import LLM_SITE
from fednano_flwr.models.fingerprint import same_checkpoint
from fednano_flwr.models.lora import WEIGHTS, read_lora

ADAPTERS = ("last", "best")


@dataclass(frozen=True)
class Run:
    """A run that was read.

    Attributes:
        path: its folder.
        config: as resolved at its start.
        rounds: the lines of metrics.jsonl, from round 0 (the frozen model) on.
        environment: versions, hardware, commit.
        notes: which keys of the config were added or left out, in words.
    """

    path: Path
    config: RunConfig
    rounds: list[dict[str, Any]]
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()

    def adapters(self, which: str = "last") -> dict[str, Tensor]:
        """The server's adapters after the last round, or after the "best", by PEFT's names.

        What of the merged model was a map at the host is in them, as a higher rank. None where the
        only site was inside the language model.

        Raises:
            ConfigError: they are missing, cannot be read, or are not finite; strategy locft has
                none at the server.
            ValueError: `which` is none of the two.
        """
        if which not in ADAPTERS:
            raise ValueError(f"adapters {which!r}: there are {' and '.join(ADAPTERS)}")
        if self.config.strategy.name == "locft":
            raise ConfigError(
                f"{self.path}: strategy locft leaves each client's adapters with the client and "
                "trains none at the server"
            )
        if not self.config.adapter.at_edge:
            return {}
        return _read(self.path / "adapters" / which, lambda folder: load_file(folder / WEIGHTS))

    def lora(self, which: str = "last") -> dict[str, Tensor]:
        """The LoRA inside the language model, likewise; none where `adapter.sites` has no `llm`.

        Raises:
            ConfigError: as `adapters`.
        """
        if not self.config.adapter.at_llm:
            return {}
        return _read(self.path / "adapters" / which / LLM_SITE, read_lora)

    def model(self, elsewhere: str = "", configured: Model | None = None) -> Model:
        """The run's model, at the commit that it had.

        Args:
            elsewhere: where the model is on this machine, if not where the config says.
            configured: what the config says now, if not the run's own.
        """
        configured = configured or self.config.model
        hub_id = (self.environment.get("model") or {}).get("hub_id")
        if elsewhere and elsewhere != hub_id:
            return Model(elsewhere, family=configured.family)
        commit = str(self.environment.get("model_revision") or configured.revision)
        return Model(elsewhere or configured.name, commit, configured.family)

    @property
    def caveats(self) -> list[str]:
        """How the server's adapters differ from those that the accuracies were measured with."""
        found = []
        if self.config.strategy.name == "feddpa-f":
            found.append(
                "These are the adapters that all clients share. Each client has its own beside "
                "them, which stayed with the client and are not here. The run's accuracies are "
                "with these too; that of what is here was not measured."
            )
        ranks = self.config.adapter.ranks if self.config.adapter.at_edge else ""
        if ranks and self.config.strategy.name != "accumulate":  # it leaves nothing to be cut
            found.append(
                f"Clients had adapters of ranks {ranks} and were scored with the merged ones cut "
                "to their rank; here they are at full rank."
            )
        return found


def _read(folder: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Finite numbers of a folder.

    Raises:
        ConfigError: they are not, or cannot be read.
    """
    try:
        found = read(folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    if not all(value.isfinite().all() for value in found.values()):
        raise ConfigError(f"{folder / WEIGHTS}: the adapters are not finite numbers")
    return found


def other_model(environment: Mapping[str, Any], name: str, fingerprint: str, revision: str) -> str:
    """How a model differs from the run's; "" if it is the same.

    Args:
        environment: of the run.
        name: the model that is to be used with it, and below its fingerprint and commit.
    """
    then = environment.get("model") or {}
    commit = environment.get("model_revision") or ""
    same = same_checkpoint(str(then.get("fingerprint", fingerprint)), fingerprint)
    if same and (not revision or not commit or revision == commit):
        return ""
    return (
        f"the run was trained on {then.get('name')} (fingerprint {then.get('fingerprint')}, "
        f"revision {commit or 'none'}), and the model here is {name} (fingerprint {fingerprint}, "
        f"revision {revision or 'none'})"
    )


def load_run(path: str | Path) -> Run:
    """Read a run's folder, finished or not.

    In a run of another version, missing keys get this version's defaults and unknown keys are left
    out; `Run.notes` names them.

    Raises:
        ConfigError: it is not a run's folder, or its config has a value that cannot be used.
    """
    folder = Path(path).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        rounds = read_rounds(folder)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is no run's folder: {error.filename} is missing") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the run in {folder} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"the run in {folder} cannot be read: config.json is no object")
    try:
        known, notes = to_this_version(config)
        parsed = RunConfig.parse(known)
    except ConfigError as error:
        raise ConfigError(f"the run in {folder} cannot be read: config.json: {error}") from None
    return Run(folder, parsed, rounds, environment, notes)


def to_this_version(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A run config with this version's keys, and the changes in words.

    Raises:
        ConfigError: it has no known key, so it is no run config.
    """
    keys = key_types()
    if not config.keys() & keys.keys():
        raise ConfigError("it is not that of a run")
    if config.keys() == keys.keys():
        return config, ()
    usual = default_config().flat()
    missing = {key: usual[key] for key in keys if key not in config}
    unknown = [key for key in config if key not in keys]
    notes = []
    if missing:
        taken = ", ".join(f"{key} = {json.dumps(value)}" for key, value in missing.items())
        notes.append(f"Another version made the run; what it lacks has today's default: {taken}.")
    if unknown:
        named = ", ".join(unknown)
        notes.append(f"Another version made the run; keys that are no more are left out: {named}.")
    return {key: config.get(key, usual[key]) for key in keys}, tuple(notes)


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without a last one that was only half written.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not whole; the message says which one.
    """
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1].split("\n")[:-1]
    return [_record(number, line) for number, line in enumerate(whole, start=1)]


def _record(number: int, line: str) -> Any:
    """A line of metrics.jsonl.

    Raises:
        ValueError: it is not whole; the message says which one.
    """
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} of metrics.jsonl is not whole: {error}") from None
