"""What can be known of a run before the LLM is loaded: one list of checks for each side.

| who asks | server's | client's machine | client's files |
|---|---|---|---|
| `fednano run`, `fednano compare`, the ServerApp of a simulation | x | x | x |
| `run_in_process` | by the ServerApp | x | x |
| the ServerApp of a deployment | x | | |
| a ClientApp, for each message | | x | read next |

`fednano doctor` shows what each check finds, of the sides that its machine has.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fednano_flwr.base.console import human_bytes
from fednano_flwr.base.files import nearest
from fednano_flwr.base.output import require_temporary_room
from fednano_flwr.base.resources import ResourceError, resolve
from fednano_flwr.config import ConfigError, Dataset, LLMConfig, Model, RunConfig, address_to_dial
from fednano_flwr.config.machine import check_resources
from fednano_flwr.config.node import NodeConfig
from fednano_flwr.config.overrides import parse_config
from fednano_flwr.config.project import defaults
from fednano_flwr.data.errors import DataError
from fednano_flwr.privacy.checks import check_unread_privacy
from fednano_flwr.strategies.registry import check_replies, check_unread

# What brings torch or Flower is imported in the functions: `fednano --help` must not wait for it.
if TYPE_CHECKING:
    from torch import Tensor

    from fednano_flwr.data.shard import Shard
    from fednano_flwr.edge.shard import ClientSpec

NODE_KEYS = {"ca-cert": "exchange.ca-cert", "device": "edge.device", "edge-path": "edge.bundle"}
"""Keys of a node config, and those of the run config that they go before."""
PROCESSOR = "the client's processor"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Check(Generic[Found]):
    """One thing that a run needs of this machine.

    Attributes:
        theme: heading under which `fednano doctor` shows it.
        subject: what is looked at, in words.
        find: returns what was found, here in words ("" for nothing worth a line). Raises
            ConfigError, DataError or ResourceError where a run would fail; after "; " their texts
            say what to do.
    """

    theme: str
    subject: str
    find: Callable[[], Found]


def run_config(app: Path, overrides: Sequence[str], clients: int, cwd: Path) -> RunConfig:
    """`config_of` for a number of clients, which is also that of the nodes to wait for.

    Raises:
        ConfigError: a key or value that cannot be used; it names them.
    """
    config = config_of(app, [f"min-available-nodes={clients}", *overrides], cwd)
    validate_number(config, clients)
    return config


def config_of(app: Path, overrides: Sequence[str], cwd: Path) -> RunConfig:
    """The app's run config with `overrides` over it; refuses changes that nothing would read.

    Raises:
        ConfigError: a key or value that cannot be used; it names them.
    """
    config = parse_config(app, overrides, cwd)
    usual = RunConfig.parse(defaults(app))
    check_unread(config.strategy, usual.strategy)
    check_unread_privacy(config.privacy, usual.privacy)
    return config


def validate(config: RunConfig, weights: bool = True) -> None:
    """Check a run whose server and clients are all on this machine.

    A data set that a module writes (`module:NAME`) is written here, once for all clients.

    Args:
        weights: also compare the model's files with its config, which downloads those of a hub
            model that are not in this machine's cache.

    Raises:
        ConfigError: the run would fail; names the key, and says what to do.
    """
    files = client_files(config, weights=weights)
    check_all([*server_checks(config, weights), *client_checks(config), *files])


def check_all(checks: Sequence[Check[str]]) -> None:
    """
    Raises:
        ConfigError: of the first check that fails.
    """
    for check in checks:
        try:
            check.find()
        except (DataError, ResourceError) as error:
            raise ConfigError(str(error)) from None


def validate_machine(clients: int, client_cpus: int, client_gpus: float) -> None:
    """Check that this machine can simulate so many clients.

    Raises:
        ConfigError: it lacks what one client needs.
        OutputError: the folder for temporary files has no room.
    """
    check_resources(clients, client_cpus, client_gpus)
    require_temporary_room()


def validate_number(config: RunConfig, clients: int) -> None:
    """Check that there are as many clients as the config asks for.

    Raises:
        ConfigError: there are not; names the key.
    """
    for key in ("min-available-nodes", "min-replies"):
        if (least := config.flat()[key]) > clients:
            raise ConfigError(
                f"{key} = {least}: there are only {clients} clients; lower it, or raise --clients"
            )
    check_replies(
        config.strategy, max(1, config.min_replies, round(config.fraction_train * clients))
    )


def read_questions(dataset: Dataset, seed: int, clients: int | None) -> None:
    """Read the data set once for all clients of this machine, which then find its table.

    Args:
        clients: None where their number is not known: then the questions are not dealt.

    Raises:
        ConfigError: it cannot be read, too many of its questions cannot, or they cannot be dealt to
            so many clients.
    """

    def read() -> str:
        from fednano_flwr.data.load import load_questions
        from fednano_flwr.data.shard import read_shards

        if clients is None:
            load_questions(dataset)
        else:
            read_shards(dataset, seed, clients)
        return ""

    check_all([Check("data", "the questions", read)])


def server_checks(config: RunConfig, weights: bool = True) -> list[Check[str]]:
    """What the server's machine needs, the quickest first.

    Args:
        weights: as in `validate`.
    """
    llm, model = config.llm, config.model
    return [
        Check("run config", "the strategy", partial(check_strategy, config)),
        Check("run config", "the metric", partial(_metric, config.dataset)),
        Check("run config", "the host's options and packages", partial(_host, config)),
        Check("run config", "resume", partial(_resume, config)),
        Check("certificates", "llm.tls-cert", partial(_identity, llm)),
        Check("network", "llm.address", partial(_address, llm)),
        Check("machine", "llm.device", partial(check_device, "llm.device", llm.device)),
        Check("folders", "run.dir", partial(_run_dir, config)),
        *([Check("model", "its family", partial(_family, model))] if weights else []),
        Check("model", "adapter.sites", partial(_sites, config)),
        *(
            [Check("model", "exchange.connector-at", partial(_connector, model))]
            if config.exchange.connector_at_host
            else []
        ),
        Check("model", "the processor", partial(check_processor, model, at_server=True)),
        *([Check("model", "the language model", partial(_half, model, "llm"))] if weights else []),
    ]


def client_checks(config: RunConfig, node: NodeConfig | None = None) -> list[Check[str]]:
    """What a client's machine needs beside files.

    Args:
        node: of one client; None for all those of a simulation.
    """
    ca_key, ca = preferred(config, node, "ca-cert")
    device_key, device = preferred(config, node, "device")
    edge = config.edge
    folders = {"edge.state-dir": edge.state_dir, "edge.feature-dir": edge.feature_dir}
    own = [] if node is None else [Check("node config", "partition", partial(_spec, config, node))]
    return [
        Check("run config", "the strategy", partial(check_strategy, config)),
        Check("run config", "the metric", partial(_metric, config.dataset)),
        *own,
        Check("certificates", "the CA's certificate", partial(_ca, ca_key, ca)),
        Check("machine", device_key, partial(check_device, device_key, device)),
        *(
            Check("folders", key, partial(check_writable, key, Path(folder)))
            for key, folder in folders.items()
            if folder
        ),
    ]


def client_files(
    config: RunConfig, node: NodeConfig | None = None, weights: bool = True, write: bool = True
) -> list[Check[str]]:
    """What a client reads: its questions, its half of the model, the processor.

    Args:
        weights: as in `validate`.
        write: whether a data set that a module writes is written where it has not been.
    """
    key, bundle = preferred(config, node, "edge-path")
    half = partial(_half, config.model, "edge")
    if bundle:
        half = partial(_bundle, key, bundle, config.model if weights else None)
    questions = partial(_dataset, config.dataset, write)
    if node is not None and node.data_path:
        questions = partial(check_own_data, node.data_path, config)
    source = Model(bundle) if bundle else config.model
    checks = [
        Check("data", "the questions", questions),
        Check("model", PROCESSOR, partial(check_processor, source)),
    ]
    if weights or bundle:
        checks.append(Check("model", "the client's half of the model", half))
    return checks


def preferred(config: RunConfig | None, node: NodeConfig | None, own: str) -> tuple[str, str]:
    """Key and value of a setting: the node config's key `own` decides, else the run config's.

    Returns:
        The key as errors name it, and its value, "" where neither has one.
    """
    if value := getattr(node, own.replace("-", "_"), None):
        return f"the node config's {own}", value
    return NODE_KEYS[own], str(config.flat()[NODE_KEYS[own]]) if config else ""


def spec_of(config: RunConfig, node: NodeConfig) -> ClientSpec:
    """A node's partition and rank, and where its data and its half of the model lie.

    A shard that `fednano partition` wrote knows its partition itself; a file of rows does not.

    Raises:
        ConfigError: the node config does not say which partition, or has an impossible rank.
        DataError: its `data-path` is neither a shard nor a file.
    """
    from fednano_flwr.data.own import is_file_of_rows
    from fednano_flwr.data.shard_folder import read_manifest
    from fednano_flwr.edge.shard import ClientSpec
    from fednano_flwr.strategies.registry import check_node_rank

    rank = node.rank_in(config)
    if rank:
        check_node_rank(rank, config)
    shard = None
    if node.data_path and not is_file_of_rows(node.data_path):
        shard = read_manifest(Path(node.data_path).expanduser())
    return ClientSpec(*node.partition(shard), node.data_path or "", node.edge_path or "", rank)


def check_writable(key: str, folder: Path) -> str:
    """That files can be written to a folder which is there, or can be made; nothing is left there.

    Raises:
        ConfigError: they cannot.
    """
    name = f"{key} = {str(folder)!r}"
    try:
        there = nearest(folder)
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name} cannot be written to: {why}; set {key} to another") from None
    how = "written to" if there == folder.expanduser().absolute() else f"made in {there}"
    return f"{name} can be {how}; {human_bytes(shutil.disk_usage(there).free)} free"


def check_strategy(config: RunConfig) -> str:
    from fednano_flwr.exchange.registry import check_exchange
    from fednano_flwr.privacy.checks import check_privacy
    from fednano_flwr.strategies.base import local_work_of
    from fednano_flwr.strategies.llm_site import check_llm_site
    from fednano_flwr.strategies.registry import check_host_map, check_ranks, make_strategy

    strategy = make_strategy(config.strategy)
    if local_work_of(strategy).data == "all" and config.edge.vocabulary == "shard":
        raise ConfigError(
            f"strategy.name = {config.strategy.name!r} trains on all clients' questions, and "
            'edge.vocabulary = "shard" holds the embeddings of a client\'s own; use '
            'edge.vocabulary = "full"'
        )
    check_ranks(config)
    check_privacy(config)
    exchange = check_exchange(config.exchange)
    check_host_map(config)
    check_llm_site(config)
    return f"strategy {config.strategy.name}, adapters of rank {config.adapter.rank}, {exchange}"


def _metric(dataset: Dataset) -> str:
    from fednano_flwr.data.metrics import find_metric

    find_metric(dataset.metric)
    return ""


def _host(config: RunConfig) -> str:
    from fednano_flwr.llm.metrics import check_metrics
    from fednano_flwr.models.llm_half import check_host
    from fednano_flwr.privacy.budget import new_accountant
    from fednano_flwr.trackers.registry import tracker_classes

    llm, privacy = config.llm, config.privacy
    check_host(llm.device, llm.quantization, llm.device_map)
    check_metrics(llm.metrics)
    tracker_classes(config.run.trackers)
    if privacy.dp != "none":
        new_accountant(privacy.delta)
    return ""


def _sites(config: RunConfig) -> str:
    from fednano_flwr.models.source import sites_of

    adapter, model = config.adapter, config.model
    found = list(adapter.sites_on(sites_of(model)))
    if adapter.at_llm:
        from fednano_flwr.models.bundle import open_whole
        from fednano_flwr.models.lora import fresh_lora

        checkpoint = open_whole(model.name, model.revision, model.family)
        values = fresh_lora(checkpoint, adapter, config.seed)
        _check_session(config, values)
        found.append(f"{len(values) // 2} layers of the language model")
    return f"adapters on {' and '.join(found)}"


def _connector(model: Model) -> str:
    from fednano_flwr.models.connector import check_connectors

    return check_connectors(model)


def _check_session(config: RunConfig, lora: Mapping[str, Tensor]) -> None:
    """Refuse a LoRA of which no client's training would find room at the host.

    Raises:
        ConfigError: with the memory that it takes.
    """
    from fednano_flwr.llm.sessions import MB, session_bytes
    from fednano_flwr.rounds.service import lora_plan
    from fednano_flwr.strategies.base import local_work_of
    from fednano_flwr.strategies.registry import make_strategy

    strategy, room = make_strategy(config.strategy), config.llm.session_memory_mb
    works = (local_work_of(strategy, number) for number in (1, 2))  # rounds may train A or B alone
    needed = max(session_bytes(lora, lora_plan(config, 1, work)) for work in works)
    if needed > room * MB:
        raise ConfigError(
            f"llm.session-memory-mb = {room}: each client's training inside the language model "
            f"takes {math.ceil(needed / MB)} MB; raise it, or lower adapter.llm-rank"
        )


def _resume(config: RunConfig) -> str:
    from fednano_flwr.runs.resume import NEVER, continues, folder_of

    folder = folder_of(config)
    if continues(config, folder):
        return f"{folder} is a run that can be continued"
    return "" if config.resume == NEVER else f"{folder} is new: the run begins there"


def _run_dir(config: RunConfig) -> str:
    from fednano_flwr.runs.resume import folder_of

    folder = folder_of(config)
    return check_writable("run.dir", folder if folder.exists() else folder.parent)


def _identity(llm: LLMConfig) -> str:
    from fednano_flwr.exchange.wire.tls import read_identity

    if read_identity(llm) is None:
        return "llm.tls-cert is not set: the LLM service speaks no TLS"
    return "llm.tls-key is the key of llm.tls-cert"


def _ca(key: str, path: str) -> str:
    from fednano_flwr.exchange.wire.tls import read_ca

    if not path:
        return f"{key} is not set: this client speaks to the LLM service without TLS only"
    read_ca(key, path)
    return ""


def _address(llm: LLMConfig) -> str:
    if not llm.address:
        return ""
    try:
        address_to_dial(llm.address)
    except ValueError as error:
        raise ConfigError(f"llm.address = {error}; it is what clients dial") from None
    return f"llm.address = {llm.address!r} is what clients dial"


def check_device(key: str, device: str) -> str:
    from fednano_flwr.models.device import describe_device

    return f"{key} = {device!r} ({describe_device(key, device)})"


def _spec(config: RunConfig, node: NodeConfig) -> str:
    spec = spec_of(config, node)
    rank = spec.rank or config.adapter.rank_of(spec.partition)
    return (
        f"this client is partition {spec.partition} of {spec.num_partitions}, its adapters have "
        f"rank {rank} of {config.adapter.rank}"
    )


def own_data(data_path: str, config: RunConfig | None) -> Shard | None:
    """A client's own data; None of a file of rows without the run config that says what it holds.

    Raises:
        DataError: it cannot be used.
    """
    from fednano_flwr.data.own import is_file_of_rows, own_shard
    from fednano_flwr.data.shard_folder import load_shard

    if config is not None:
        return own_shard(data_path, config.dataset, config.seed, partition=0)[0]
    return None if is_file_of_rows(data_path) else load_shard(Path(data_path))


def check_own_data(data_path: str, config: RunConfig | None) -> str:
    shard = own_data(data_path, config)
    if shard is None:
        return f"data-path = {data_path!r} is a file, which is read as the run config says"
    if not shard.train:
        raise DataError(f"data-path = {data_path!r}: the shard has no training question")
    return (
        f"data-path = {data_path!r}: {len(shard.train)} training and {len(shard.test)} test "
        f"questions{'' if Path(data_path).is_file() else ', all files as written'}"
    )


def _dataset(dataset: Dataset, write: bool = True) -> str:
    from fednano_flwr.data.load import check_dataset, check_revision

    if not write and dataset.path.startswith("module:"):
        check_revision(dataset)
        if not resolve("dataset.path", dataset.path, write=False).is_dir():
            return f"dataset.path = {dataset.path!r} is installed, and writes the data set once"
    check_dataset(dataset)
    return f"dataset.path = {dataset.path!r} has the layout of {dataset.name}"


def _family(model: Model) -> str:
    from fednano_flwr.models.passed import require_pass

    return require_pass(model)


def _half(model: Model, half: str) -> str:
    from fednano_flwr.models.bundle import check_half

    return check_half(model, half)


def _bundle(key: str, path: str, model: Model | None) -> str:
    from fednano_flwr.models.bundle import check_bundle

    return check_bundle(key, path, model)


def check_processor(source: Model, at_server: bool = False) -> str:
    """Of a server, which need not have one, only where it is there."""
    from fednano_flwr.edge.process_cache import check_processor_here, encoder

    if not at_server:
        encoder(source)
    elif not check_processor_here(source):
        return ""
    return f"model {source.name}: processor, tokenizer and config fit together"
