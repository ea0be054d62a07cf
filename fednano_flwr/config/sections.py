"""The sections of the run config: every key, its meaning and its range.

Defaults are in pyproject.toml (`[tool.flwr.app.config]`) and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fednano_flwr.base.files import is_folder_name
from fednano_flwr.config.addresses import NO_HOST, host_and_port, is_ipv6, is_loopback
from fednano_flwr.config.keys import ConfigError, Section, check_device, key

SITES = ("image", "text", "audio")
"""Of adapters, of the rows of a batch, and of gradients in their order."""
ALL_SITES = "all"
LLM_SITE = "llm"
"""A LoRA inside the language model, trained at the host."""
DTYPES = ("float32", "bfloat16", "float16")
EXCHANGE_DTYPES = ("auto", *DTYPES, "int8")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
FISHER_ESTIMATES = ("pass", "pass-model", "pass-samples", "running", "running-last")
UPLOAD_ADAPTERS = ("float32", "int8", "int4")
UPLOAD_FISHERS = ("float32", "log4")
DP_KINDS = ("none", "client-fixed", "client-adaptive", "server-fixed", "server-adaptive")
TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")
MOST_SECONDS = 1e9
"""Above it, some waits of Python and gRPC overflow."""
MOST_THREADS = 1024
MOST_RANK = 2**16
"""Wider than any model's embeddings, of which no adapter needs more than the width."""


@dataclass(frozen=True)
class RunFolder(Section):
    """Where results go."""

    prefix: ClassVar[str] = "run."
    dir: str = key("folder that holds the folders of runs", path="yes", resumable=True, place=True)
    name: str = key(
        "name of this run's folder; empty: date, time and strategy", resumable=True, place=True
    )
    keep_checkpoints: int = key(
        "checkpoints kept, one a round", resumable=True, place=True, least=1
    )
    trackers: str = key(
        "names of `tensorboard`, `trackio`, `wandb`, `mlflow`, joined by commas",
        resumable=True,
        place=True,
    )

    def check(self) -> None:
        self.require(
            not self.name or is_folder_name(self.name),
            "name",
            "the name of one folder in run.dir: no /, \\ or line break, not .., at most 255 bytes",
        )
        names = set(self.trackers.split(",")) if self.trackers else set()
        known = f"names of {', '.join(TRACKERS)}, joined by commas"
        self.require(names <= set(TRACKERS), "trackers", known)


@dataclass(frozen=True)
class Model(Section):
    """Which multimodal LLM."""

    prefix: ClassVar[str] = "model."
    name: str = key("hub id or folder of a multimodal LLM, or `package:NAME/SUB`", path="maybe")
    revision: str = key("branch, tag or commit on the hub; empty: the default branch", default="")
    family: str = key(
        "`auto`: also of a family that is not listed ([models.md](models.md#any-other-family))",
        default="",
        choices=("", "auto"),
    )


@dataclass(frozen=True)
class Dataset(Section):
    """Which questions, and how they are dealt to clients."""

    prefix: ClassVar[str] = "dataset."
    name: str = key("what is read, and how ([data.md](data.md))")
    path: str = key("its folder or hub id; `module:NAME/SUB` is written by a module", path="maybe")
    revision: str = key("branch, tag or commit on the hub; empty: the default branch")
    tasks: str = key("IconQA's `choose_txt`, `choose_img`, `fill_in_blank`, joined by commas")
    train_split: str = key("split that is dealt to clients")
    test_split: str = key("split that clients are tested on, each on its part")
    test_fraction: float = key(
        "above 0: share of each client's own training questions to test on", least=0, below=1
    )
    partitioner: str = key("`dirichlet`, `iid`, or the class name of one of flwr-datasets'")
    partitioner_args: str = key("its arguments, as `num_classes_per_partition=2`")
    alpha: float = key(
        "of the Dirichlet distribution; the smaller, the more clients differ", above=0
    )
    min_partition_size: int = key("fewest training questions that a client is dealt", least=1)
    max_skipped: float = key("largest share of questions that may be left out", least=0, most=1)
    columns: str = key("which column is what, as `image=photo,answer=label`; empty: by its name")
    group: str = key("column that questions are grouped by to be dealt; empty: by its name")
    instruction: str = key(
        "what follows a free question of a `table`; its question, where no column has one"
    )
    metric: str = key("how free answers are scored ([data.md](data.md#prompt-and-scoring))")
    max_tokens: int = key("most tokens of a question with its answer; 0: no limit", least=0)
    too_long: str = key(
        "a longer one is left out (`skip`), or its text is cut ([data.md](data.md#long-questions))",
        choices=("skip", "cut"),
    )

    def check(self) -> None:
        self.require(
            self.test_fraction > 0 or self.test_split != self.train_split,
            "test_split",
            "another split than dataset.train-split, or dataset.test-fraction above 0",
        )


@dataclass(frozen=True)
class Adapter(Section):
    """What a NanoAdapter is."""

    prefix: ClassVar[str] = "adapter."
    rank: int = key("r of a NanoAdapter, `h' = h + s·B(A h)`", least=1, most=MOST_RANK)
    alpha: float = key("gives the scale, `s = alpha / rank`, at each client's rank", above=0)
    dropout: float = key("share of an adapter's inputs dropped in training", least=0, below=1)
    sites: str = key(
        "`all` that the model has; or some of `image` and `audio` (the connector's output) and "
        "`text` (token embeddings), joined by commas; and `llm`, a LoRA inside the language model"
    )
    ranks: str = key("clients' own ranks in turn, as `4,8,16`; empty: `adapter.rank`", default="")
    llm_rank: int = key(
        "of the LoRA inside the language model", default=16, least=1, most=MOST_RANK
    )
    llm_targets: str = key(
        "its linear layers, as PEFT's `target_modules`; empty: those of the attention", default=""
    )
    llm_learning_rate: float = key("for it; 0: `learning-rate`", default=0.0, least=0)

    def check(self) -> None:
        self.require(
            all(rank.isdecimal() and 1 <= int(rank) <= self.rank for rank in self._ranks),
            "ranks",
            f"empty, or whole numbers from 1 to adapter.rank = {self.rank}, joined by commas",
        )
        names = [name for name in self._sites if name != LLM_SITE]
        self.require(
            names == [ALL_SITES]
            or (
                (bool(self._sites) and set(names) <= set(SITES))
                and len(set(self._sites)) == len(self._sites)
            ),
            "sites",
            '"all", or some of "image", "text" and "audio"; "llm" may be added; joined by commas',
        )

    def sites_on(self, model: Sequence[str]) -> tuple[str, ...]:
        """The sites at the clients that have an adapter, in the order in which the model has them.

        Args:
            model: the sites of a model.

        Raises:
            ConfigError: it lacks one that is named.
        """
        named = model if ALL_SITES in self._sites else set(self._sites) - {LLM_SITE}
        self.require(
            set(named) <= set(model), "sites", f"all, or some of this model's: {', '.join(model)}"
        )
        return tuple(site for site in model if site in named)

    @property
    def at_llm(self) -> bool:
        """Whether the language model has a LoRA, which the host trains."""
        return LLM_SITE in self._sites

    @property
    def at_edge(self) -> bool:
        """Whether clients have NanoAdapters."""
        return any(name != LLM_SITE for name in self._sites)

    @property
    def _sites(self) -> list[str]:
        return [name.strip() for name in self.sites.split(",") if name.strip()]

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

    @property
    def scale(self) -> float:
        """s, at every rank."""
        return self.alpha / self.rank

    def at(self, rank: int) -> Adapter:
        """The same adapters, scale s included, at one rank for all."""
        if rank == self.rank:
            return dataclasses.replace(self, ranks="")
        alpha = self.scale * rank
        return dataclasses.replace(self, rank=rank, alpha=alpha, ranks="")


@dataclass(frozen=True)
class Strategy(Section):
    """How adapters are merged."""

    prefix: ClassVar[str] = "strategy."
    name: str = key("this project's, Flower's by class name, or `module:Class`")
    weight_by: str = key(
        "weight of a client: its number of training questions, or equal",
        choices=("samples", "equal"),
    )
    fisher_estimate: str = key(
        "which Fisher diagonal clients send; `auto`: the strategy's own",
        choices=("auto", *FISHER_ESTIMATES),
    )
    fisher_floor: float = key(
        "added to Fisher values, as a share of their mean over clients", above=0
    )
    fisher_power: float = key("Fisher values are raised to this power before they weigh", above=0)
    fisher_scale: str = key(
        "divide Fisher values by their mean, of a `client` or of each `tensor`",
        choices=("as-sent", "client", "tensor"),
    )
    factors: str = key(
        "`A` as large as the clients' (`plain`), or factors of equal size",
        choices=("plain", "balanced"),
    )
    server_rate: float = key("steps along the clients' mean change; 0: FedExP's rate", least=0)
    proximal_mu: float = key(
        "μ of `fedprox`: how strongly training is held to the round's start", least=0
    )
    local_rank: int = key(
        "rank of `feddpa-f`'s local adapter; 0: `adapter.rank`", least=0, most=MOST_RANK
    )
    args: str = key("arguments of one of Flower's strategies, as `eta=0.01,tau=0.001`")


@dataclass(frozen=True)
class Edge(Section):
    """The client, NanoEdge."""

    prefix: ClassVar[str] = "edge."
    device: str = key("PyTorch device of encoder, connector, embeddings and adapters")
    dtype: str = key("of the frozen parts' numbers", choices=DTYPES)
    threads: int = key(
        "PyTorch's CPU threads in a client; 0: PyTorch's choice", least=0, most=MOST_THREADS
    )
    feature_cache_mb: int = key(
        "MB of image features that a client process keeps in memory", resumable=True, least=0
    )
    feature_disk_mb: int = key(
        "MB of image features kept on disk for all clients; 0: none", resumable=True, least=0
    )
    feature_dir: str = key(
        "their folder; empty: `features` in `$FEDNANO_CACHE`",
        path="yes",
        resumable=True,
        place=True,
    )
    state_dir: str = key(
        "folder of what a client never sends; empty: in `$FEDNANO_CACHE`", path="yes", place=True
    )
    vocabulary: str = key(
        "token embeddings that a client reads: all, or those of its shard",
        choices=("full", "shard"),
    )
    bundle: str = key(
        "folder written by `fednano split`, read instead of the checkpoint",
        path="yes",
        resumable=True,
    )

    def check(self) -> None:
        check_device("edge.device", self.device)


@dataclass(frozen=True)
class LLMConfig(Section):
    """The server, which hosts the LLM."""

    prefix: ClassVar[str] = "llm."
    device: str = key("PyTorch device of the language model and its head")
    dtype: str = key("of their numbers", choices=DTYPES)
    quantization: str = key(
        "of the language model's linear layers, by bitsandbytes", choices=("none", "8bit", "4bit")
    )
    replicas: int = key(
        "copies of the language model behind the one address", resumable=True, least=1
    )
    replica_gpus: float = key(
        "GPUs that Ray reserves for each replica: a share, or a whole number", resumable=True
    )
    checkpointing: bool = key("compute each decoder layer again for the gradient: less memory")
    device_map: str = key(
        "over all GPUs, as transformers' `device_map`; empty: `llm.device`",
        choices=("", *DEVICE_MAPS),
    )
    threads: int = key(
        "PyTorch's CPU threads in the server; 0: PyTorch's choice", least=0, most=MOST_THREADS
    )
    bind: str = key("address that the LLM service listens on; loopback without TLS", resumable=True)
    port: int = key("its port; 0: a free one", resumable=True, least=0, most=65535)
    address: str = key("`host:port` that clients dial; empty: bind and port", resumable=True)
    tls_cert: str = key("file of the service's certificate (PEM)", path="yes", resumable=True)
    tls_key: str = key("file of its private key (PEM, not encrypted)", path="yes", resumable=True)
    insecure_beyond_loopback: bool = key("allow any `llm.bind` without TLS", resumable=True)
    max_tokens: int = key(
        "most tokens in one request, and of all answers under way; longer questions are left out",
        least=1,
        most=2**31 - 1,
    )
    feature_memory_mb: int = key(
        "MB of image features that the host keeps in memory", resumable=True, least=0
    )
    feature_disk_mb: int = key(
        "MB of them that it keeps on disk once memory is full", resumable=True, least=0
    )
    batch_tokens: int = key(
        "most tokens in a pass over several clients' samples; 0: no batching", least=0
    )
    max_clients: int = key("clients that may be connected at once", resumable=True, least=1)
    session_memory_mb: int = key(
        "MB of the clients' training under way inside the language model (site `llm`)",
        resumable=True,
        least=1,
    )
    node_requests_per_second: float = key(
        "requests a second that one node may make; 0: no limit", resumable=True, least=0
    )
    metrics: str = key(
        "`host:port` for Prometheus; port 0: a free one; empty: none", resumable=True
    )

    def check(self) -> None:
        gpus = self.replica_gpus
        self.require(
            0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer()),
            "replica_gpus",
            "a share of a GPU (0 to 1) or a whole number of them",
        )
        if self.replicas > 1 and self.device.startswith("cuda"):
            self.require(
                gpus > 0,
                "replica_gpus",
                'above 0 with llm.replicas above 1 and llm.device = "cuda": the share of a GPU '
                "that each replica takes, such as 0.5 for two on one GPU",
            )
            self.require(
                self.device == "cuda",
                "device",
                '"cuda" with llm.replicas above 1: each replica is given its GPU',
            )
        self.require(
            bool(self.tls_cert) == bool(self.tls_key),
            "tls_key",
            f"set together with llm.tls-cert (it is {self.tls_cert!r}): both or none",
        )
        self.require(
            bool(self.tls_cert) or self.insecure_beyond_loopback or is_loopback(self.bind),
            "bind",
            "a loopback address (127.0.0.1, localhost or ::1) while the LLM service has no TLS; "
            "for others set llm.tls-cert and llm.tls-key, or, on a network where everyone may "
            "read along, llm.insecure-beyond-loopback = true",
        )
        self.require(
            not set(self.bind) & NO_HOST and (":" not in self.bind or is_ipv6(self.bind)),
            "bind",
            "a host's name or IP address, without a port (that is llm.port) or brackets",
        )
        self.require(
            bool(self.address) or self.bind not in ("0.0.0.0", "::"),
            "address",
            f"the host:port that clients dial, as llm.bind = {self.bind!r} is no address to dial",
        )
        if self.metrics:
            try:
                host_and_port(self.metrics)
            except ValueError as error:
                raise ConfigError(f"llm.metrics = {error}; port 0 is a free one") from None


@dataclass(frozen=True)
class Exchange(Section):
    """What crosses between client and LLM host."""

    prefix: ClassVar[str] = "exchange."
    kind: str = key("`lowrank`, `embeddings`, or another ([exchange.md](exchange.md))")
    labels_at: str = key(
        "`client`: label ids stay there, in a second round trip", choices=("server", "client")
    )
    connector_at: str = key(
        "`server`: the host has the connector too, and what that reads is sent where it is smaller",
        choices=("client", "server"),
    )
    dtype: str = key("of the numbers sent; `auto`: `llm.dtype`", choices=EXCHANGE_DTYPES)
    timeout: float = key(
        "seconds until a request counts as failed and is repeated",
        resumable=True,
        above=0,
        most=MOST_SECONDS,
    )
    ca_cert: str = key(
        "file of the CA certificate that vouches for the LLM service", path="yes", resumable=True
    )

    @property
    def connector_at_host(self) -> bool:
        """Whether the host makes features of what the connector reads."""
        return self.connector_at == "server"


@dataclass(frozen=True)
class Upload(Section):
    """What a client uploads after training."""

    prefix: ClassVar[str] = "upload."
    adapters: str = key(
        "trained adapters, or what training changed in 8 or 4 bits", choices=UPLOAD_ADAPTERS
    )
    fisher: str = key(
        "Fisher diagonals: as they are, or in 4 bits of their logarithm", choices=UPLOAD_FISHERS
    )
    error_feedback: bool = key("add what rounding left out to the next update")


@dataclass(frozen=True)
class Bounds(Section):
    """Bounds on what a client uploads."""

    prefix: ClassVar[str] = "bounds."
    max_update_norm: float = key("an update longer than this is refused; 0: none is", least=0)
    max_fisher_norm: float = key(
        "a Fisher diagonal longer than this is refused; 0: none is", least=0
    )
    clip_update_norm: float = key(
        "longer updates are scaled down to this norm; 0: none are", least=0
    )


@dataclass(frozen=True)
class Privacy(Section):
    """Differential privacy of the merged adapters."""

    prefix: ClassVar[str] = "privacy."
    dp: str = key("who clips updates, and to what; the server adds the noise", choices=DP_KINDS)
    clip_norm: float = key("L2 norm that longer updates are scaled down to", above=0)
    noise_multiplier: float = key(
        "standard deviation of the noise in the updates' sum, in clip norms", above=0
    )
    delta: float = key(
        "δ at which ε is printed; well below 1 / number of clients", above=0, below=1
    )
    target_quantile: float = key(
        "`-adaptive`: share of the updates that is to be clipped", above=0, below=1
    )
    clip_rate: float = key("`-adaptive`: how fast the clip norm moves, in its logarithm", above=0)
    count_noise: float = key("`-adaptive`: noise on how many were clipped, in clients", above=0)

    def check(self) -> None:
        if self.adaptive:
            self.require(
                self.noise_multiplier < 2 * self.count_noise,
                "noise_multiplier",
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
