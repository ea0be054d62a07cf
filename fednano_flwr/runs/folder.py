"""Writes a run's folder: config, metrics, adapters and checkpoints.

config.json        the run config as resolved
environment.json   versions, hardware, commit, which model, and the hub's commits of model and data
                   set; of a resumed run also those of each start since
metrics.jsonl      one object a round, from round 0 (the frozen model) on
adapters/last      adapters after the last round, in PEFT's format; joined with them, as one of a
                   higher rank, is what of the merged model was at the host
adapters/best      those of the round with the best mean accuracy (`RunFolder.best`)
state.json         which rounds these are
checkpoints/       what a stopped run is resumed from (checkpoint.py)
metrics-cut.jsonl  lines of rounds that were repeated, or only half written
.lock              the process that writes the folder now (base/lock.py)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fednano_flwr.adapters.host_map import joined, rank_of
from fednano_flwr.adapters.llm_part import at_clients, at_llm
from fednano_flwr.adapters.site import build_adapters, load_adapter_state, sites_in
from fednano_flwr.base.console import say
from fednano_flwr.base.files import append_synced, replace_file
from fednano_flwr.base.lock import FolderLock
from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.config.lineage import PreviousRun
from fednano_flwr.config.machine import environment
from fednano_flwr.config.sections import LLM_SITE
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.models.lora import save_lora
from fednano_flwr.runs import checkpoint as checkpoints
from fednano_flwr.runs import comparable
from fednano_flwr.runs.checkpoint import Checkpoint, CheckpointError, Memory
from fednano_flwr.runs.results import other_model
from fednano_flwr.runs.resume import continues, digest_of, run_folder_of

ENVIRONMENT = "environment.json"


class RunFolder:
    """Writes one run; every file is complete at any time.

    A run that ends before round 0's results leaves no folder. With `resume`, an earlier run in it
    is reset to its last checkpoint. The folder is locked until `close`, or the end of the process.

    Args:
        run: Flower's id of this run.

    Attributes:
        rounds: records of metrics.jsonl.
        model: its name, hub id, fingerprint and hidden size, set before round 0.
        model_revision, dataset_revision: commits on the hub, set before round 0; "" for a folder.
        resumed: the checkpoint that the run continues; None for a new run.
        earlier: the runs that led to that checkpoint, and those stopped before they had one.

    Raises:
        ConfigError: the folder has an earlier run that must not, or cannot, be continued.
        LockedError: another run writes there.
        CheckpointError: none of its checkpoints can be read or restored.
    """

    def __init__(self, config: RunConfig, run: int = 0) -> None:
        self.config = config
        self._own = ExitStack()  # the folder and its lock, until `close`
        self.path = self._own.enter_context(run_folder_of(config))
        self.rounds: list[dict[str, Any]] = []
        self.model: dict[str, Any] = {}
        self.model_revision = self.dataset_revision = ""
        self.resumed: Checkpoint | None = None
        self.earlier: list[PreviousRun] = []
        self._run = str(run)
        self._best: dict[str, Tensor] = {}
        self._environment = {"run": self._run, **environment()}
        with ExitStack() as opening:
            opening.callback(self.close)
            continues(config, self.path)  # refuses before locking
            try:
                self._own.enter_context(FolderLock(self.path, say))
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written to: {error}") from error
            try:
                if continues(config, self.path):  # again: the last holder may have changed it
                    self._restore()
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.path} cannot be continued: {error}") from error
            opening.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder; the attributes stay."""
        self._own.close()

    @property
    def best(self) -> dict[str, Any]:
        """The record of the round with the best mean accuracy (`comparable.best`).

        It depends on the rounds so far alone, so a resumed run has the same.
        """
        return comparable.best(self.rounds)

    @property
    def finished(self) -> bool:
        """Whether all rounds are there."""
        return len(self.rounds) == self.config.num_server_rounds + 1

    def set_model(self, info: LLMInfo) -> None:
        """Set the run's model.

        Raises:
            ConfigError: the resumed run had another one.
        """
        self.model = {
            "name": info.model,
            "hub_id": info.hub_id,
            "fingerprint": info.fingerprint,
            "hidden_size": info.hidden_size,
        }
        self.model_revision = info.revision
        if self.resumed is None:
            return
        differs = other_model(
            _read_json(self.path / ENVIRONMENT), info.model, info.fingerprint, info.revision
        )
        if differs:
            raise ConfigError(f"resume = {self.config.resume!r}: {self.path}: {differs}")

    def set_dataset(self, commit: str) -> None:
        """Set the data set's commit on the hub; "" for a folder, or if it is not known.

        Raises:
            ConfigError: the resumed run had another one.
        """
        self.dataset_revision = commit
        if self.resumed is None:
            return
        earlier = _read_json(self.path / ENVIRONMENT).get("dataset_revision", "")
        if earlier and commit and earlier != commit:
            raise ConfigError(
                f"resume = {self.config.resume!r}: {self.path} had {self.config.dataset.path} at "
                f"commit {earlier}, and dataset.revision = {self.config.dataset.revision!r} is "
                f"{commit} now; begin another run, with dataset.revision set to a commit"
            )

    def append(
        self,
        record: dict[str, Any],
        theta: Mapping[str, Tensor],
        hidden_size: int,
        memory: Memory | None = None,
        map: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a round: its adapters, its line of metrics, then its checkpoint.

        Args:
            theta: the server's adapters after it, in the order of the messages.
            memory: the strategy's.
            map: what the merged model has beside them, at the host.

        Raises:
            CheckpointError: the disk is full, or cannot be written to.
        """
        try:
            self._append(record, dict(theta), hidden_size, memory or Memory(), map or {})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"round {record['round']} could not be written to {self.path} ({error}). What was "
                "written of earlier rounds is still there: make room, and continue "
                f"with resume = {json.dumps(str(self.path), ensure_ascii=False)}"
            ) from error

    def _append(
        self,
        record: dict[str, Any],
        theta: dict[str, Tensor],
        hidden_size: int,
        memory: Memory,
        map: dict[str, Tensor],
    ) -> None:
        if not self.rounds:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_json(self.path / "config.json", self.config.flat())
            noted = {
                "model": self.model,
                "model_revision": self.model_revision,
                "dataset_revision": self.dataset_revision,
            }
            _write_json(self.path / ENVIRONMENT, self._environment | noted)
        line = json.dumps(record, allow_nan=False)
        self.rounds.append(record)
        whole = joined(theta, map)
        self._save_adapters("last", whole, hidden_size)
        if self.best is record:
            self._best = whole
            self._save_adapters("best", whole, hidden_size)
        append_synced(self.path / "metrics.jsonl", (line + "\n").encode())
        self._write_state()
        checkpoint = Checkpoint(
            round=record["round"],
            theta=theta,
            best_round=self.best["round"],
            best=self._best,
            hidden_size=hidden_size,
            runs=[*self.earlier, PreviousRun(self._run, record["round"])],
            config=digest_of(self.config),
            packages=self._environment["packages"],
            memory=memory,
            map=map,
        )
        keep = self.config.run.keep_checkpoints
        checkpoints.write(self.path / "checkpoints", checkpoint, keep)

    def _restore(self) -> None:
        """Reset the folder to its last checkpoint; to before round 0 if it has none."""
        self._remove_partial()
        found = checkpoints.newest(self.path / "checkpoints", say)
        if found is None:
            if _state_round(self.path) > 0:
                raise ConfigError(f"{self.path} holds a run without checkpoints: it cannot go on")
            checkpoints.tidy(self.path / "checkpoints", -1, 0)
            self._cut_metrics(-1)
            return
        if found.config != digest_of(self.config):
            raise ConfigError(
                f"{self.path}: the checkpoint of round {found.round} is of another config"
            )
        self.resumed, self._best = found, found.best
        self.earlier = [*self._lost_starts(found), *found.runs]
        self.rounds = self._cut_metrics(found.round)
        self._save_adapters("last", found.whole, found.hidden_size)
        self._save_adapters("best", found.best, found.hidden_size)
        self._write_state()
        keep = self.config.run.keep_checkpoints
        checkpoints.tidy(self.path / "checkpoints", found.round, keep)
        if not self.finished:
            self._note_start(found)

    def _remove_partial(self) -> None:
        """Remove files that a stopped run had begun to write."""
        for file in self.path.glob("*.partial"):
            file.unlink()

    def _lost_starts(self, found: Checkpoint) -> list[PreviousRun]:
        """Starts of this run without a checkpoint: clients' local state from them is not used."""
        noted = _read_json(self.path / ENVIRONMENT)
        starts = [start.get("run") for start in (noted, *noted.get("resumed", []))]
        known = {one.run for one in found.runs} | {None, self._run}
        return [PreviousRun(run, -1) for run in dict.fromkeys(starts) if run not in known]

    def _note_start(self, found: Checkpoint) -> None:
        """Add this start to environment.json, and print which packages have other versions."""
        first = _read_json(self.path / ENVIRONMENT)
        starts = [*first.get("resumed", []), {"after_round": found.round, **self._environment}]
        _write_json(self.path / ENVIRONMENT, {**first, "resumed": starts})
        for name, version in self._environment["packages"].items():
            if (then := found.packages.get(name)) != version:
                say(f"warning  {name} was {then} and is {version}: results may differ in last bits")

    def _cut_metrics(self, last: int) -> list[dict[str, Any]]:
        """Keep the lines of rounds up to `last` in metrics.jsonl; move the others to another file.

        Raises:
            CheckpointError: one of those lines is missing.
        """
        file, aside = self.path / "metrics.jsonl", self.path / "metrics-cut.jsonl"
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        kept, cut = lines[: last + 1], lines[last + 1 :]
        try:
            records = [json.loads(line) for line in kept]
        except ValueError:
            records = []
        if [record.get("round") for record in records] != list(range(last + 1)):
            raise CheckpointError(f"{file} lacks lines of the rounds up to {last}")
        if cut:
            before = aside.read_bytes() if aside.exists() else b""
            replace_file(aside, before + b"".join(cut).rstrip(b"\n") + b"\n")
        if file.exists():
            replace_file(file, b"".join(kept))
        return records

    def _write_state(self) -> None:
        state = {"round": self.rounds[-1]["round"], "best_round": self.best["round"]}
        _write_json(self.path / "state.json", {**state, "seed": self.config.seed})

    def _save_adapters(self, name: str, theta: dict[str, Tensor], hidden_size: int) -> None:
        config, own, lora = self.config, at_clients(theta), at_llm(theta)
        folder = self.path / "adapters" / name
        fresh, old = folder.with_name(f"{name}.new"), folder.with_name(f"{name}.old")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        if own:
            adapter = config.adapter.at(rank_of(own))
            named = config.seed, config.model.name, sites_in(own)
            adapters = build_adapters(hidden_size, adapter, *named)
            load_adapter_state(adapters, own)
            adapters.save_pretrained(str(fresh))
        if lora:
            save_lora(lora, config.adapter, config.model.name, fresh / LLM_SITE)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _state_round(folder: Path) -> int:
    """The last round whose results the folder has; -1 where it has none."""
    file = folder / "state.json"
    return int(_read_json(file)["round"]) if file.exists() else -1


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _write_json(path: Path, value: object) -> None:
    """Write a whole file or nothing."""
    replace_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
