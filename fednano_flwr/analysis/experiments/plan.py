"""Which runs a comparison has: experiments × settings × seeds, each with its resolved config."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednano_flwr.analysis.config_digest import digest_of
from fednano_flwr.analysis.groups import common_metric
from fednano_flwr.config import LARGEST, ConfigError, RunConfig, key_types
from fednano_flwr.config.overrides import parse_override
from fednano_flwr.config.project import PACKAGE, defaults
from fednano_flwr.data.metrics import metric_label
from fednano_flwr.preflight import run_config

RUNS = "runs"
"""Folder of all runs in `--out`; comparisons share them."""
OURS = {
    "seed": "give --seeds",
    "resume": "an unfinished run is begun anew",
    "run.dir": "give --out",
    "run.name": "runs are named by their config",
    "edge.state-dir": "each run gets a folder of its own",
}
"""Keys that a comparison sets itself, and what to do instead."""
ONE_PROCESS = {
    "llm.replicas": (1, "a compared run is one process; must be 1"),
    "llm.port": (0, "each compared run serves its own LLM; must be 0"),
    "llm.address": ("", "each compared run serves its own LLM; must be empty"),
}
"""Keys that a compared run cannot change: what they have to be, and why."""
MOST_SEEDS = 1000
ALIAS = "default"
"""What results call the experiment whose strategy is the app's default."""
_SEEDS = re.compile(r"(\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True)
class Setting:
    """One cell of the grid that `--vary` spans.

    Attributes:
        values: full key to value, in the order given; empty without `--vary`.
        label: as in `alpha=0.1,rank=8`; empty without `--vary`.
    """

    values: tuple[tuple[str, Any], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class PlannedRun:
    """One run of the comparison; two experiments with the same config share its folder."""

    experiment: str
    setting: Setting
    seed: int
    clients: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir) / self.config.run.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def digest(self) -> str:
        """The same for runs that differ in the seed alone."""
        return self.config.run.name.rsplit("-seed", 1)[0]

    @property
    def data(self) -> tuple[Any, ...]:
        """What decides the shards: runs that agree in it read and tokenize the same questions."""
        return self.config.model, self.config.dataset, self.seed, self.clients

    def __str__(self) -> str:
        label = f"{self.setting.label.replace(',', ' ')} " if self.setting.label else ""
        return f"{self.experiment}  {label}seed {self.seed}"


@dataclass(frozen=True)
class CompareOptions:
    """The command line of `fednano compare`.

    Attributes:
        files: one experiment each, named by the file's stem.
        seeds: as in `0..4` or `0,1,2`.
        vary: each `key=v1,v2`.
        overrides: `-c` of all experiments.
        baseline: an experiment's name; None for the first.
        out, name: runs go to `out`/runs, tables to `out`/`name`.
    """

    files: Sequence[Path]
    seeds: str
    vary: Sequence[str]
    overrides: Sequence[str]
    clients: int
    baseline: str | None
    out: Path
    name: str


@dataclass(frozen=True)
class Plan:
    """All runs, and what they are compared as.

    Attributes:
        runs: by setting, then seed, then experiment: early on every experiment has some.
        default: for each setting the first experiment whose strategy is the app's default, where
            one is.
        metric: label of the one metric of all runs.
    """

    runs: list[PlannedRun]
    experiments: list[str]
    settings: list[Setting]
    seeds: list[int]
    baseline: str
    default: dict[Setting, str]
    out: Path
    name: str
    metric: str

    @property
    def distinct(self) -> list[PlannedRun]:
        """The first run of each folder."""
        found: dict[Path, PlannedRun] = {}
        for run in self.runs:
            found.setdefault(run.folder, run)
        return list(found.values())


def make_plan(app: Path, options: CompareOptions, cwd: Path) -> Plan:
    """Resolve every run's config, without looking at models or data.

    Raises:
        ConfigError: an option, file, key or value cannot be used; the message names it.
    """
    _check_code(app)
    experiments = _experiments(options.files)
    baseline = options.baseline or next(iter(experiments))
    if baseline not in experiments:
        known = ", ".join(experiments)
        raise ConfigError(f"--baseline {baseline}: no such experiment; there are {known}")
    if (
        options.name == RUNS
        or Path(options.name).name != options.name
        or options.name.startswith(".")
    ):
        raise ConfigError(f"--name {options.name!r}: give a plain folder name other than {RUNS!r}")
    seeds = parse_seeds(options.seeds)
    grid = [parse_vary(text, cwd) for text in options.vary]
    if repeated := _repeated([key for key, _ in grid]):
        raise ConfigError(f"--vary {repeated}: is given twice; join its values by commas")
    for text in options.overrides:
        _check_ours(f"-c {text}", parse_override(text, cwd))
    out = (cwd / options.out.expanduser()).resolve()
    cells = list(itertools.product(*[[(key, v) for v in values] for key, values in grid]))
    settings = [Setting(cell, _label(cell)) for cell in cells]
    configs = {
        (name, setting): _resolve(app, file, options, setting, cwd)
        for setting in settings
        for name, file in experiments.items()
    }
    runs = [
        _planned(name, setting, seed, options.clients, configs[name, setting], out / RUNS)
        for setting in settings
        for seed in seeds
        for name in experiments
    ]
    usual = defaults(app).get("strategy.name")
    default: dict[Setting, str] = {}
    for (name, setting), config in configs.items():
        if config.strategy.name == usual:
            default.setdefault(setting, name)
    metric = common_metric({str(run): metric_label(run.config) for run in runs})
    return Plan(
        runs, list(experiments), settings, seeds, baseline, default, out, options.name, metric
    )


def parse_seeds(text: str) -> list[int]:
    """`0..2,7` as `[0, 1, 2, 7]`.

    Raises:
        ConfigError: not of that form.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = _SEEDS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > LARGEST or last - first >= MOST_SEEDS:
            raise ConfigError(
                f"--seeds {text}: give 0..4, or 0,1,2, or both joined by commas; below 2^63, and "
                f"at most {MOST_SEEDS} in a range"
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_vary(text: str, cwd: Path) -> tuple[str, list[Any]]:
    """`dataset.alpha=0.1,1` as key and values; a value with a comma goes in double quotes.

    Raises:
        ConfigError: no values, an unknown key, or one that a comparison sets itself.
    """
    key, _, values = text.partition("=")
    key = key.strip()
    parts = [part.strip() for part in next(csv.reader([values], skipinitialspace=True), [])]
    if not key or not all(parts) or not parts:
        raise ConfigError(f"--vary {text}: give key=value,value")
    flat = [parse_override(f"{key}={part}", cwd)[key] for part in parts]
    _check_ours(f"--vary {text}", {key: flat[0]})
    kind = key_types()[key]
    typed = [float(v) if kind is float and type(v) is int else v for v in flat]
    return key, list(dict.fromkeys(typed))


def _check_code(app: Path) -> None:
    """Refuse an app that is not this code: compared runs are of the imported package."""
    own = app / PACKAGE.name
    if own.exists() and own.resolve() != PACKAGE:
        raise ConfigError(
            f"{app} has code of its own, and this command would compare that of {PACKAGE.parent}. "
            f"Install it ({shlex.join(['pip', 'install', '-e', str(app)])}), or set "
            f"PYTHONPATH={shlex.quote(str(app))}"
        )


def _experiments(files: Sequence[Path]) -> dict[str, Path]:
    for file in files:
        if file.suffix != ".toml":
            raise ConfigError(f"{file}: an experiment is a file that ends in .toml")
    if repeated := _repeated([file.stem for file in files]):
        raise ConfigError(f"{repeated}.toml: two experiments of that name; rename a file")
    if ALIAS in {file.stem for file in files}:
        raise ConfigError(
            f"{ALIAS}.toml: results call the experiment with the default strategy so; rename it"
        )
    return {file.stem: file for file in files}


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _check_ours(where: str, flat: dict[str, Any]) -> None:
    if key := next((key for key in flat if key in OURS), None):
        raise ConfigError(f"{where}: {key} is set by the comparison; {OURS[key]}")


def _resolve(
    app: Path, file: Path, options: CompareOptions, setting: Setting, cwd: Path
) -> RunConfig:
    """The app's defaults, the experiment's file, `-c` and `--vary`, the last one winning."""
    at = f" with {setting.label}" if setting.label else ""
    file = cwd / file.expanduser()
    own = parse_override(str(file), cwd)
    _check_ours(str(file), own)
    varied = [f"{key}={_toml(value)}" for key, value in setting.values]
    try:
        config = run_config(app, [str(file), *options.overrides, *varied], options.clients, cwd)
    except ConfigError as error:
        raise ConfigError(f"{file}{at}: {error}") from None
    flat = config.flat()
    for key, (needed, why) in ONE_PROCESS.items():
        if flat[key] != needed:
            raise ConfigError(f"{file}{at}: {key} = {flat[key]!r}: {why}")
    return config


def _planned(
    name: str, setting: Setting, seed: int, clients: int, config: RunConfig, folder: Path
) -> PlannedRun:
    named = f"{digest_of(config, clients)}-seed{seed}"
    place = dataclasses.replace(config.run, dir=str(folder), name=named)
    return PlannedRun(
        name, setting, seed, clients, dataclasses.replace(config, seed=seed, run=place)
    )


def _label(cell: Sequence[tuple[str, Any]]) -> str:
    """`alpha=0.1,rank=8`; whole keys where two end alike."""
    short = [key.rsplit(".", 1)[-1] for key, _ in cell]
    keys = short if len(set(short)) == len(short) else [key for key, _ in cell]
    return ",".join(f"{key}={_plain(value)}" for key, (_, value) in zip(keys, cell, strict=True))


def _plain(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)
