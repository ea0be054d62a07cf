"""The run config, parsed once into typed, validated dataclasses; nothing else reads raw keys.

Defaults live in pyproject.toml (`[tool.flwr.app.config]`) and nowhere else. Flower hands the merged
config to both apps as flat keys (`"dataset.alpha"`); a field `min_partition_size` of the section
`dataset` is the key `dataset.min-partition-size`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from math import isfinite
from typing import Any, get_type_hints

from fednano_flwr.base.files import is_folder_name

SITES = ("image", "text")
DTYPES = ("float32", "bfloat16", "float16")
EXCHANGE_DTYPES = ("auto", *DTYPES, "int8")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
FISHER_ESTIMATES = ("pass", "pass-model", "running")
SCHEDULES = ("constant", "cosine", "linear")
UPLOAD_ADAPTERS = ("float32", "int8", "int4")
DP_KINDS = ("none", "client-fixed", "client-adaptive", "server-fixed", "server-adaptive")
UPLOAD_FISHERS = ("float32", "log4")

SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""Whole numbers that TOML, Flower's messages and JSON readers carry."""
MOST_SECONDS = 1e9
"""Above it, some waits of Python and gRPC overflow."""
MOST_THREADS = 1024
MOST_RANK = 2**16
"""Wider than any model's embeddings, of which no adapter needs more than the width."""
_NO_HOST = set(" \t\r\n/@[]?#")


class ConfigError(ValueError):
    """A run-config key is unknown, missing, or has a value that cannot be used."""


def _require(ok: bool, key: str, value: object, accepts: str) -> None:
    if not ok:
        raise ConfigError(f"{key} = {value!r}: must be {accepts}")


def _seconds(key: str, value: float, or_zero: bool = False) -> None:
    ok = (value > 0 or (or_zero and value == 0)) and value <= MOST_SECONDS
    _require(ok, key, value, f"{'0 or more' if or_zero else 'above 0'}, at most {MOST_SECONDS:g}")


def _threads(key: str, value: int) -> None:
    _require(0 <= value <= MOST_THREADS, key, value, f"0 (torch's choice) to {MOST_THREADS}")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, "one of " + ", ".join(choices))


def check_device(key: str, value: str) -> None:
    """Refuse what cannot be the name of a PyTorch device.

    Raises:
        ConfigError: `key` is named in the message.
    """
    ok = re.fullmatch(r"[a-z]+(:\d+)?", value) is not None
    _require(ok, key, value, 'the name of a PyTorch device, such as "cpu", "cuda" or "cuda:1"')


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:  # another host's name
        return False


def host_and_port(text: str) -> tuple[str, int]:
    """`host:port`, `[::1]:port` for IPv6, in two.

    Raises:
        ValueError: it is not so.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    digits = port.isascii() and port.isdecimal()
    if not colon or not bare or not digits or not int(port) < 65536 or set(bare) & _NO_HOST:
        raise ValueError(f"{text!r}: give HOST:PORT, such as 192.0.2.7:9093 or [2001:db8::7]:9093")
    if ":" in bare and bare == host:
        raise ValueError(f"{text!r}: put an IPv6 address in brackets, as in [2001:db8::7]:9093")
    if bare != host and not _is_ipv6(bare):
        raise ValueError(f"{text!r}: no IPv6 address is in the brackets; a name goes without")
    return bare, int(port)


def address_to_dial(text: str) -> tuple[str, int]:
    """The same of an address that somebody dials, whose port is never 0.

    Raises:
        ValueError: it is not so.
    """
    host, port = host_and_port(text)
    if not port:
        raise ValueError(f"{text!r}: give HOST:PORT, with the port that is dialled")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class RunFolder:
    dir: str
    name: str
    keep_checkpoints: int
    trackers: str

    def __post_init__(self) -> None:
        _require(
            self.keep_checkpoints >= 1, "run.keep-checkpoints", self.keep_checkpoints, "at least 1"
        )
        _require(
            not self.name or is_folder_name(self.name),
            "run.name",
            self.name,
            "the name of one folder in run.dir: no /, \\ or line break, not .., at most 255 bytes",
        )
        known = f"names of {', '.join(TRACKERS)}, joined by commas"
        names = self.trackers.split(",") if self.trackers else []
        _require(set(names) <= set(TRACKERS), "run.trackers", self.trackers, known)


@dataclass(frozen=True)
class Model:
    name: str
    revision: str = ""  # of a folder, which has none: a run config names it


@dataclass(frozen=True)
class Dataset:
    name: str
    path: str
    revision: str
    tasks: str
    train_split: str
    test_split: str
    test_fraction: float
    partitioner: str
    partitioner_args: str
    alpha: float
    min_partition_size: int
    max_skipped: float

    def __post_init__(self) -> None:
        _require(
            0 <= self.test_fraction < 1, "dataset.test-fraction", self.test_fraction, "in [0, 1)"
        )
        _require(
            self.test_fraction > 0 or self.test_split != self.train_split,
            "dataset.test-split",
            self.test_split,
            "another split than dataset.train-split, or dataset.test-fraction above 0",
        )
        _require(0 <= self.max_skipped <= 1, "dataset.max-skipped", self.max_skipped, "in [0, 1]")
        _require(self.alpha > 0, "dataset.alpha", self.alpha, "above 0")
        _require(
            self.min_partition_size >= 1,
            "dataset.min-partition-size",
            self.min_partition_size,
            "at least 1",
        )


@dataclass(frozen=True)
class Adapter:
    rank: int
    alpha: float
    dropout: float
    sites: str
    ranks: str = ""  # for adapters built by hand: a run config names it

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "adapter.rank", self.rank, "at least 1")
        _require(self.rank <= MOST_RANK, "adapter.rank", self.rank, f"at most {MOST_RANK}")
        _require(
            all(rank.isdecimal() and 1 <= int(rank) <= self.rank for rank in self._ranks),
            "adapter.ranks",
            self.ranks,
            f"empty, or whole numbers from 1 to adapter.rank = {self.rank}, joined by commas",
        )
        _require(self.alpha > 0, "adapter.alpha", self.alpha, "above 0")
        _require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "in [0, 1)")
        names = self.site_names
        _require(
            bool(names) and set(names) <= set(SITES) and len(set(names)) == len(names),
            "adapter.sites",
            self.sites,
            'one or both of "image" and "text", joined by a comma',
        )

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.sites.split(",") if name.strip())

    @property
    def _ranks(self) -> list[str]:
        return [rank.strip() for rank in self.ranks.split(",")] if self.ranks.strip() else []

    @property
    def clients_ranks(self) -> tuple[int, ...]:
        """The ranks that clients have in turn."""
        return tuple(map(int, self._ranks)) or (self.rank,)

    def rank_of(self, partition: int) -> int:
        """The rank of one client's adapters."""
        return self.clients_ranks[partition % len(self.clients_ranks)]

    def at(self, rank: int) -> Adapter:
        """The same adapters, scale s included, at one rank for all."""
        if rank == self.rank:
            return dataclasses.replace(self, ranks="")
        alpha = self.alpha / self.rank * rank
        return dataclasses.replace(self, rank=rank, alpha=alpha, ranks="")


@dataclass(frozen=True)
class Strategy:
    name: str
    weight_by: str
    fisher_estimate: str
    fisher_floor: float
    fisher_power: float
    fisher_scale: str
    factors: str
    server_rate: float
    proximal_mu: float
    local_rank: int
    args: str

    def __post_init__(self) -> None:
        _one_of("strategy.weight-by", self.weight_by, ("samples", "equal"))
        _one_of("strategy.fisher-estimate", self.fisher_estimate, ("auto", *FISHER_ESTIMATES))
        _one_of("strategy.fisher-scale", self.fisher_scale, ("as-sent", "client", "tensor"))
        _require(self.fisher_floor > 0, "strategy.fisher-floor", self.fisher_floor, "above 0")
        _require(self.fisher_power > 0, "strategy.fisher-power", self.fisher_power, "above 0")
        _require(
            self.server_rate >= 0,
            "strategy.server-rate",
            self.server_rate,
            "above 0, or 0 for a rate that follows from the clients' changes",
        )
        _one_of("strategy.factors", self.factors, ("plain", "balanced"))
        _require(self.proximal_mu >= 0, "strategy.proximal-mu", self.proximal_mu, "0 or more")
        _require(
            0 <= self.local_rank <= MOST_RANK,
            "strategy.local-rank",
            self.local_rank,
            f"0 (as adapter.rank) to {MOST_RANK}",
        )


@dataclass(frozen=True)
class Edge:
    device: str
    dtype: str
    threads: int
    feature_cache_mb: int
    feature_disk_mb: int
    feature_dir: str
    state_dir: str
    vocabulary: str
    bundle: str

    def __post_init__(self) -> None:
        check_device("edge.device", self.device)
        _one_of("edge.dtype", self.dtype, DTYPES)
        _one_of("edge.vocabulary", self.vocabulary, ("full", "shard"))
        _threads("edge.threads", self.threads)
        _require(self.feature_cache_mb >= 0, "edge.feature-cache-mb", self.feature_cache_mb, "≥ 0")
        _require(self.feature_disk_mb >= 0, "edge.feature-disk-mb", self.feature_disk_mb, "≥ 0")


@dataclass(frozen=True)
class LLM:
    device: str
    dtype: str
    quantization: str
    replicas: int
    replica_gpus: float
    checkpointing: bool
    device_map: str
    threads: int
    bind: str
    port: int
    address: str
    tls_cert: str
    tls_key: str
    insecure_beyond_loopback: bool
    max_tokens: int
    feature_memory_mb: int
    feature_disk_mb: int
    batch_tokens: int
    max_clients: int
    node_requests_per_second: float
    metrics: str

    def __post_init__(self) -> None:
        for key in (
            "feature_memory_mb",
            "feature_disk_mb",
            "batch_tokens",
            "node_requests_per_second",
        ):
            value = getattr(self, key)
            _require(value >= 0, f"llm.{key.replace('_', '-')}", value, "0 or more")
        _require(1 <= self.max_tokens < 2**31, "llm.max-tokens", self.max_tokens, "1 to 2^31 - 1")
        _require(self.max_clients >= 1, "llm.max-clients", self.max_clients, "at least 1")
        _one_of("llm.dtype", self.dtype, DTYPES)
        _one_of("llm.quantization", self.quantization, ("none", "8bit", "4bit"))
        self._check_replicas()
        _require(
            self.device_map in ("", *DEVICE_MAPS),
            "llm.device-map",
            self.device_map,
            "empty (all on llm.device), or one of " + ", ".join(DEVICE_MAPS),
        )
        _threads("llm.threads", self.threads)
        self._check_network()
        _require(0 <= self.port < 65536, "llm.port", self.port, "0 (a free one) to 65535")

    def _check_network(self) -> None:
        _require(
            bool(self.tls_cert) == bool(self.tls_key),
            "llm.tls-key",
            self.tls_key,
            f"set together with llm.tls-cert (it is {self.tls_cert!r}): both or none",
        )
        _require(
            bool(self.tls_cert) or self.insecure_beyond_loopback or is_loopback(self.bind),
            "llm.bind",
            self.bind,
            "a loopback address (127.0.0.1, localhost or ::1) while the LLM service has no TLS; "
            "for others set llm.tls-cert and llm.tls-key, or, on a network where everyone may "
            "read along, llm.insecure-beyond-loopback = true",
        )
        _require(
            not set(self.bind) & _NO_HOST and (":" not in self.bind or _is_ipv6(self.bind)),
            "llm.bind",
            self.bind,
            "a host's name or IP address, without a port (that is llm.port) or brackets",
        )
        _require(
            bool(self.address) or self.bind not in ("0.0.0.0", "::"),
            "llm.address",
            self.address,
            f"the host:port that clients dial, as llm.bind = {self.bind!r} is no address to dial",
        )
        if self.metrics:
            try:
                host_and_port(self.metrics)
            except ValueError as error:
                raise ConfigError(f"llm.metrics = {error}; port 0 is a free one") from None

    def _check_replicas(self) -> None:
        gpus = self.replica_gpus
        _require(self.replicas >= 1, "llm.replicas", self.replicas, "at least 1")
        _require(
            0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer()),
            "llm.replica-gpus",
            gpus,
            "a share of a GPU (0 to 1) or a whole number of them",
        )
        if self.replicas > 1 and self.device.startswith("cuda"):
            _require(
                gpus > 0,
                "llm.replica-gpus",
                gpus,
                'above 0 with llm.replicas above 1 and llm.device = "cuda": the share of a GPU '
                "that each replica takes, such as 0.5 for two on one GPU",
            )
            _require(
                self.device == "cuda",
                "llm.device",
                self.device,
                '"cuda" with llm.replicas above 1: each replica is given its GPU',
            )


@dataclass(frozen=True)
class Exchange:
    kind: str
    labels_at: str
    dtype: str
    timeout: float
    ca_cert: str

    def __post_init__(self) -> None:
        _one_of("exchange.kind", self.kind, ("embeddings", "lowrank"))
        _one_of("exchange.labels-at", self.labels_at, ("server", "client"))
        _one_of("exchange.dtype", self.dtype, EXCHANGE_DTYPES)
        _seconds("exchange.timeout", self.timeout)


@dataclass(frozen=True)
class Upload:
    adapters: str
    fisher: str
    error_feedback: bool

    def __post_init__(self) -> None:
        _one_of("upload.adapters", self.adapters, UPLOAD_ADAPTERS)
        _one_of("upload.fisher", self.fisher, UPLOAD_FISHERS)


@dataclass(frozen=True)
class Bounds:
    max_update_norm: float
    max_fisher_norm: float
    clip_update_norm: float

    def __post_init__(self) -> None:
        for key in ("max_update_norm", "max_fisher_norm", "clip_update_norm"):
            value = getattr(self, key)
            _require(value >= 0, f"bounds.{key.replace('_', '-')}", value, "0 (none) or more")


@dataclass(frozen=True)
class Privacy:
    dp: str
    clip_norm: float
    noise_multiplier: float
    delta: float
    target_quantile: float
    clip_rate: float
    count_noise: float

    def __post_init__(self) -> None:
        _one_of("privacy.dp", self.dp, DP_KINDS)
        for key in ("clip_norm", "noise_multiplier", "clip_rate", "count_noise"):
            value = getattr(self, key)
            _require(value > 0, f"privacy.{key.replace('_', '-')}", value, "above 0")
        _require(0 < self.delta < 1, "privacy.delta", self.delta, "in (0, 1)")
        _require(
            0 < self.target_quantile < 1,
            "privacy.target-quantile",
            self.target_quantile,
            "in (0, 1)",
        )
        if self.adaptive:
            _require(
                self.noise_multiplier < 2 * self.count_noise,
                "privacy.noise-multiplier",
                self.noise_multiplier,
                f"below 2 × privacy.count-noise ({self.count_noise:g}): with adaptive clipping the "
                "count of clipped updates uses up a part of the noise",
            )

    @property
    def adaptive(self) -> bool:
        """Whether the clip norm follows the updates."""
        return self.dp.endswith("adaptive")

    @property
    def at_client(self) -> bool:
        """Whether clients clip their updates themselves."""
        return self.dp.startswith("client")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run can be told. `docs/config.md` says what each key means."""

    seed: int
    resume: str
    num_server_rounds: int
    fraction_train: float
    fraction_evaluate: float
    min_available_nodes: int
    min_replies: int
    round_timeout: float
    round_limit: float
    local_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_schedule: str
    learning_rate_end: float
    warm_up_rounds: int
    weight_decay: float
    max_grad_norm: float
    max_answer_tokens: int
    run: RunFolder
    model: Model
    dataset: Dataset
    adapter: Adapter
    strategy: Strategy
    edge: Edge
    llm: LLM
    exchange: Exchange
    upload: Upload
    bounds: Bounds
    privacy: Privacy

    def __post_init__(self) -> None:
        _require(0 <= self.seed <= LARGEST, "seed", self.seed, "from 0 to 2^63 - 1")
        _require(self.num_server_rounds >= 0, "num-server-rounds", self.num_server_rounds, "≥ 0")
        for key in ("fraction_train", "fraction_evaluate"):
            value = getattr(self, key)
            _require(0 < value <= 1, key.replace("_", "-"), value, "in (0, 1]")
        for key in (
            "min_available_nodes",
            "min_replies",
            "local_epochs",
            "batch_size",
            "max_answer_tokens",
        ):
            value = getattr(self, key)
            _require(value >= 1, key.replace("_", "-"), value, "at least 1")
        _seconds("round-timeout", self.round_timeout)
        _seconds("round-limit", self.round_limit)
        for key in ("learning_rate", "max_grad_norm"):
            value = getattr(self, key)
            _require(value > 0, key.replace("_", "-"), value, "above 0")
        _require(
            self.round_limit >= self.round_timeout,
            "round-limit",
            self.round_limit,
            f"at least round-timeout ({self.round_timeout:g})",
        )
        _require(self.weight_decay >= 0, "weight-decay", self.weight_decay, "0 or more")
        self._check_schedule()
        _require(
            self.resume != "auto" or bool(self.run.name),
            "resume",
            self.resume,
            '"never", a run\'s folder, or "auto" with run.name, which says what to continue',
        )

    def _check_schedule(self) -> None:
        _one_of("learning-rate-schedule", self.learning_rate_schedule, SCHEDULES)
        end, warm_up = self.learning_rate_end, self.warm_up_rounds
        _require(0 <= end <= 1, "learning-rate-end", end, "in [0, 1]")
        _require(
            warm_up == 0 or 0 < warm_up < self.num_server_rounds,
            "warm-up-rounds",
            warm_up,
            f"0 or more, and fewer than num-server-rounds ({self.num_server_rounds})",
        )

    @classmethod
    def parse(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Build the config from flat keys as in Flower's `context.run_config`.

        Raises:
            ConfigError: a key is unknown, missing, of the wrong type or out of range.
        """
        check_keys(flat)
        return _build(cls, "", flat)

    def flat(self) -> dict[str, Any]:
        """The config as flat keys again: `parse(config.flat()) == config`."""
        return {key: _lookup(self, key) for key in key_types()}


def key_types() -> dict[str, type]:
    """Every key of the run config and its type, in the order of the dataclasses."""
    return _key_types(RunConfig, "")


def check_keys(flat: Mapping[str, Any]) -> None:
    """Refuse unknown keys, naming the nearest known one and listing all.

    Raises:
        ConfigError: a key that no section has.
    """
    known = key_types()
    for key in flat:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown key {key}.{hint} The keys are: {', '.join(known)}")


def _fields(cls: type) -> list[tuple[str, str, type]]:
    """(attribute, key, type) of each field of a config dataclass."""
    hints = get_type_hints(cls)
    return [(f.name, f.name.replace("_", "-"), hints[f.name]) for f in dataclasses.fields(cls)]


def _key_types(cls: type, prefix: str) -> dict[str, type]:
    keys: dict[str, type] = {}
    for _, key, kind in _fields(cls):
        if dataclasses.is_dataclass(kind):
            keys |= _key_types(kind, f"{prefix}{key}.")
        else:
            keys[prefix + key] = kind
    return keys


def _build(cls: type, prefix: str, flat: Mapping[str, Any]) -> Any:
    values = {}
    for attribute, key, kind in _fields(cls):
        if dataclasses.is_dataclass(kind):
            values[attribute] = _build(kind, f"{prefix}{key}.", flat)
        elif prefix + key not in flat:
            raise ConfigError(f"{prefix}{key} is missing; its default belongs in pyproject.toml")
        else:
            values[attribute] = _typed(prefix + key, kind, flat[prefix + key])
    return cls(**values)


def _typed(key: str, kind: type, value: Any) -> Any:
    """The value in its key's type.

    Raises:
        ConfigError: it has another type, is a number that cannot be computed with or sent, or a
            text that no file's name and no message can hold.
    """
    if type(value) is int and kind in (int, float):
        _require(SMALLEST <= value <= LARGEST, key, value, "from -2^63 to 2^63 - 1")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} = {value!r}: must be of type {kind.__name__}")
    if isinstance(value, float):
        _require(isfinite(value), key, value, "a finite number")
    if isinstance(value, str):
        _require(_is_text(value), key, value, "text that UTF-8 can hold, without a NUL")
    return value


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # half a character
        return False


def _lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part.replace("-", "_"))
    return config
