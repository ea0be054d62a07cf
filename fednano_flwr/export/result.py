"""The result of a run: the adapters of its best or last round, and what is known of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fednano_flwr.adapters.host_map import by_site
from fednano_flwr.adapters.product import Factors
from fednano_flwr.config import SITES, ConfigError
from fednano_flwr.runs.results import Run, load_run

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class RunResult:
    """A run, and the adapters of one of its rounds.

    Attributes:
        which: "best" or "last".
        round: the adapters are those after it.
        adapter_config: PEFT's.
        state: the adapters' parameters by PEFT's names.
    """

    run: Run
    which: str
    round: int
    adapter_config: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def model(self) -> Mapping[str, Any]:
        """Name, hub id, fingerprint and hidden size of the run's model; empty in older runs."""
        return self.run.environment.get("model", {})

    @property
    def scale(self) -> float:
        """s."""
        return float(self.adapter_config["lora_alpha"]) / int(self.adapter_config["r"])

    @property
    def adapters(self) -> dict[str, Factors]:
        """By site: A (r, d), and s·B (d, r) in float64."""
        pairs = by_site(self.state).items()
        return {site: Factors(pair.a, self.scale * pair.b.double()) for site, pair in pairs}

    @property
    def width(self) -> int:
        """d, the size of the embeddings that the adapters change."""
        return next(iter(self.adapters.values())).a.shape[1]


def read_run(folder: Path, which: str) -> RunResult:
    """Read a run's folder.

    Raises:
        ConfigError: it is no run's, or the run has no adapters that change something.
    """
    run = load_run(folder)
    if not run.rounds:
        raise ConfigError(f"{folder}: metrics.jsonl is empty, so the adapters' accuracy is unknown")
    place = folder / "adapters" / which
    result = RunResult(run, which, _round(run, which), _json(place / CONFIG), run.adapters(which))
    _check(result, place)
    return result


def _round(run: Run, which: str) -> int:
    """The round that the adapters are of.

    Raises:
        ConfigError: the folder does not say it, or lacks the round's results.
    """
    key = "best_round" if which == "best" else "round"
    number = _json(run.path / "state.json").get(key)
    if not isinstance(number, int):
        raise ConfigError(f"{run.path}: state.json does not say {key}")
    if number not in [record.get("round") for record in run.rounds]:
        raise ConfigError(
            f"{run.path}: adapters/{which} are of round {number}, which metrics.jsonl lacks, so "
            "their accuracy is unknown"
        )
    return number


def _check(result: RunResult, place: Path) -> None:
    """Refuse adapters that are not NanoAdapters, or that change nothing."""
    config = result.adapter_config
    if config.get("peft_type") != "LORA" or config.get("use_rslora") or config.get("use_dora"):
        raise ConfigError(f"{place}: {CONFIG} does not describe NanoAdapters (plain LoRA)")
    known = {f"base_model.model.{site}_adapter.lora_{f}.weight" for site in SITES for f in "AB"}
    if not result.state or not result.state.keys() <= known:
        raise ConfigError(f"{place}: {WEIGHTS} holds {sorted(result.state)}, not NanoAdapters")
    if not any(adapter.a.any() and adapter.b.any() for adapter in result.adapters.values()):
        remark = ""
        if result.which == "best" and result.round == 0:
            remark = "; the frozen model was the best, --which last takes the last round's"
        raise ConfigError(
            f"{place}: the adapters of round {result.round} change nothing (B A = 0){remark}"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: a JSON object is expected")
    return found
