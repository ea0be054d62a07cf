"""The result of a run: the adapters of its best or last round, and what is known of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fednano_flwr.adapters.host_map import by_site
from fednano_flwr.adapters.product import Factors, adapters_of
from fednano_flwr.config import SITES, ConfigError
from fednano_flwr.config.sections import LLM_SITE
from fednano_flwr.models.lora import PREFIX
from fednano_flwr.runs.results import Run, load_run

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Saved:
    """A part of a result as PEFT has it in a folder.

    Attributes:
        config: PEFT's.
        state: the parameters by name.
    """

    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def scale(self) -> float:
        """s."""
        return float(self.config["lora_alpha"]) / int(self.config["r"])

    def scaled(self, pairs: Mapping[str, Factors]) -> dict[str, Factors]:
        """Of pairs A and B: A, and s·B in float64."""
        return {name: Factors(one.a, self.scale * one.b.double()) for name, one in pairs.items()}


@dataclass(frozen=True)
class RunResult:
    """A run, and the adapters of one of its rounds.

    Attributes:
        which: "best" or "last".
        round: the adapters are those after it.
        nano: the NanoAdapters; None where the only site is inside the language model.
        inside: the LoRA inside the language model, if there is one.
    """

    run: Run
    which: str
    round: int
    nano: Saved | None
    inside: Saved | None

    @property
    def model(self) -> Mapping[str, Any]:
        """Name, hub id, fingerprint and hidden size of the run's model; empty in older runs."""
        return self.run.environment.get("model", {})

    @property
    def parts(self) -> list[Saved]:
        """What there is of the two."""
        return [part for part in (self.nano, self.inside) if part]

    @property
    def adapters(self) -> dict[str, Factors]:
        """NanoAdapters by site: A (r, d), and s·B (d, r) in float64."""
        return self.nano.scaled(by_site(self.nano.state)) if self.nano else {}

    @property
    def lora(self) -> dict[str, Factors]:
        """The LoRA by its layers' names in the whole model: A (r, i), and s·B (o, r) in float64."""
        if self.inside is None:
            return {}
        pairs = adapters_of(self.inside.state).items()
        return self.inside.scaled({name.removeprefix(PREFIX): pair for name, pair in pairs})

    @property
    def width(self) -> int:
        """d, the size of the embeddings that the adapters change."""
        return next(iter(self.adapters.values())).a.shape[1]


def read_run(folder: Path, which: str) -> RunResult:
    """Read a run's folder.

    Raises:
        ConfigError: it is no run's, or the run has nothing that changes the model.
    """
    run = load_run(folder)
    if not run.rounds:
        raise ConfigError(f"{folder}: metrics.jsonl is empty, so the adapters' accuracy is unknown")
    place, sites = folder / "adapters" / which, run.config.adapter
    nano = inside = None
    if sites.at_edge:
        nano = Saved(place, _json(place / CONFIG), run.adapters(which))
    if sites.at_llm:
        inside = Saved(place / LLM_SITE, _json(place / LLM_SITE / CONFIG), run.lora(which))
    result = RunResult(run, which, _round(run, which), nano, inside)
    _check(result)
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


def _check(result: RunResult) -> None:
    """Refuse what is no NanoAdapter and no plain LoRA, and what changes nothing."""
    known = {f"base_model.model.{site}_adapter.lora_{f}.weight" for site in SITES for f in "AB"}
    for part in result.parts:
        config, names = part.config, part.state.keys()
        if config.get("peft_type") != "LORA" or config.get("use_rslora") or config.get("use_dora"):
            raise ConfigError(f"{part.folder}: {CONFIG} does not describe plain LoRA")
        if not names or (part is result.nano and not names <= known):
            what = "NanoAdapters" if part is result.nano else "a LoRA"
            raise ConfigError(f"{part.folder}: {WEIGHTS} holds {sorted(names)}, not {what}")
        try:
            adapters_of(part.state)
        except ValueError as error:
            raise ConfigError(f"{part.folder}: {WEIGHTS} holds {error}") from None
    every = [*result.adapters.values(), *result.lora.values()]
    if not any(one.a.any() and one.b.any() for one in every):
        remark = ""
        if result.which == "best" and result.round == 0:
            remark = "; the frozen model was the best, --which last takes the last round's"
        raise ConfigError(
            f"{result.parts[0].folder}: the adapters of round {result.round} change nothing "
            f"(B A = 0){remark}"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: a JSON object is expected")
    return found
