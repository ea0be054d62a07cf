"""What a run left behind, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fednano_flwr.config import ConfigError
from fednano_flwr.export.fold import LowRank
from fednano_flwr.runs.results import read_rounds, to_this_version

WHICH = ("best", "last")
SITES = ("image", "text")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class RunResult:
    """One run, and the adapters of one of its rounds.

    Attributes:
        folder: of the run.
        which: "best" or "last".
        round: whose adapters these are.
        config: the run config, flat keys.
        environment: versions and hardware; `model` in it says what the run's model was.
        rounds: lines of metrics.jsonl.
        adapter_config: PEFT's.
        state: the adapters' parameters by PEFT's names.
        notes: what of the config is not as the run wrote it, in words for people.
    """

    folder: Path
    which: str
    round: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: list[dict[str, Any]]
    adapter_config: dict[str, Any]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> Mapping[str, Any]:
        """Name, hub id, fingerprint and hidden size of the run's model; empty in older runs."""
        return self.environment.get("model", {})

    @property
    def width(self) -> int:
        """d, the size of the embeddings that the adapters change."""
        return next(iter(self.sites.values())).width

    @property
    def sites(self) -> dict[str, LowRank]:
        """The adapters by their site, "image" and "text" as far as there are such."""
        found = {}
        scale = float(self.adapter_config["lora_alpha"]) / int(self.adapter_config["r"])
        for site in SITES:
            stem = f"base_model.model.{site}_adapter.lora_"
            if f"{stem}A.weight" in self.state:
                a, b = (self.state[f"{stem}{factor}.weight"] for factor in "AB")
                found[site] = LowRank(a, b, scale)
        return found


def read_run(folder: Path, which: str) -> RunResult:
    """Read a run's folder.

    Raises:
        ConfigError: it is no run's, or the run has no adapters that say anything.
    """
    if which not in WHICH:
        raise ConfigError(f"--which {which}: must be one of {', '.join(WHICH)}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give that of a run, as runs/NAME")
    written = _json(folder, "config.json")
    if "strategy.name" not in written:
        raise ConfigError(f"{folder}: its config.json is not that of a run")
    config, notes = to_this_version(written)
    if config["strategy.name"] == "locft":
        raise ConfigError(
            f"{folder}: with strategy locft each client's adapters stay with the client and the "
            "server's are never trained, so the run has none to export"
        )
    place = folder / "adapters" / which
    if not place.is_dir():
        raise ConfigError(f"{folder}: it has no adapters/{which}, so there is nothing to export")
    try:
        state = load_file(place / WEIGHTS)
        rounds = read_rounds(folder)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{folder}: the run cannot be read: {error}") from error
    if not rounds:
        raise ConfigError(
            f"{folder}: its metrics.jsonl is empty, so there is no telling what it did"
        )
    result = RunResult(
        folder=folder,
        which=which,
        round=_round(folder, which, rounds),
        config=config,
        environment=_json(folder, "environment.json"),
        rounds=rounds,
        adapter_config=_json(place, CONFIG),
        state=state,
        notes=notes,
    )
    _check(result, place)
    return result


def _round(folder: Path, which: str, rounds: list[dict[str, Any]]) -> int:
    """The round whose adapters these are.

    Raises:
        ConfigError: the folder does not say it, or lacks the round's results.
    """
    key = "best_round" if which == "best" else "round"
    number = _json(folder, "state.json").get(key)
    if not isinstance(number, int):
        raise ConfigError(f"{folder}: its state.json does not say {key}")
    if number not in [record.get("round") for record in rounds]:
        raise ConfigError(
            f"{folder}: round {number} is not in metrics.jsonl, though adapters/{which} are of it; "
            "its line was lost, so there is no telling how good they are"
        )
    return number


def _check(result: RunResult, place: Path) -> None:
    """Refuse adapters that are not NanoAdapters, or that change nothing."""
    config = result.adapter_config
    known = {f"base_model.model.{site}_adapter.lora_{f}.weight" for site in SITES for f in "AB"}
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("use_rslora") or config.get("use_dora"):
        raise ConfigError(f"{place}: {CONFIG} does not describe NanoAdapters (plain LoRA)")
    if not result.state or not result.state.keys() <= known or not result.sites:
        raise ConfigError(f"{place}: {WEIGHTS} holds {sorted(result.state)}, not NanoAdapters")
    if not all(value.isfinite().all() for value in result.state.values()):
        raise ConfigError(f"{place}: the adapters of round {result.round} are not finite numbers")
    if all(adapter.changes_nothing for adapter in result.sites.values()):
        remark = ""
        if result.which == "best" and result.round == 0:
            remark = ": the frozen model was the best; --which last takes those of the last round"
        raise ConfigError(
            f"{place}: the adapters of round {result.round} change nothing (B A = 0){remark}"
        )


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: it has no {name}; give the folder of a run") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{folder / name}: a JSON object is expected")
    return found
