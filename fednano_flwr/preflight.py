"""What can be known of a run before anything is started or loaded.

`fednano run` and `fednano compare` check before they start Flower or a worker, `run_in_process` and
the ServerApp before they load a model. The ServerApp of a deployment checks its own side alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fednano_flwr.base.files import nearest
from fednano_flwr.base.resources import ResourceError
from fednano_flwr.config import ConfigError, Dataset, RunConfig, address_to_dial
from fednano_flwr.config.overrides import parse_config
from fednano_flwr.config.project import defaults
from fednano_flwr.privacy.checks import check_unread_privacy
from fednano_flwr.strategies.registry import check_replies, check_unread


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
        ConfigError: it cannot go well; names the key, and says what there is.
    """
    from fednano_flwr.models.bundle import check_weights

    validate_clients(config)
    validate_server(config)
    if weights:
        check_weights(config.model, edge=not config.edge.bundle)


def validate_server(config: RunConfig) -> None:
    """Check what the server's machine has to have: model, devices, certificates, a folder.

    The model's processor need not be there, but has to fit the model where it is.

    Also that the run is there, or is not, as `resume` says.

    Raises:
        ConfigError: otherwise; names the key, and says what there is.
    """
    # Imported here: they bring torch and Flower, which `fednano --help` must not wait for.
    from fednano_flwr.edge.loaded import check_processor_here
    from fednano_flwr.exchange.wire.tls import read_identity
    from fednano_flwr.models.source import check_model
    from fednano_flwr.runs.resume import continues, folder_of

    read_identity(config.llm)
    if config.llm.address:
        try:
            address_to_dial(config.llm.address)
        except ValueError as error:
            raise ConfigError(f"llm.address = {error}; it is what clients dial") from None
    validate_names(config)
    validate_host(config)
    check_model(config.model.name, config.model.revision)
    check_processor_here(config.model)
    folder = folder_of(config)
    continues(config, folder)
    _check_writable("run.dir", folder)


def validate_clients(config: RunConfig) -> None:
    """Check what clients have to have that are on this machine: processor, data, device, folders.

    Raises:
        ConfigError: otherwise; names the key, and says what there is.
    """
    from fednano_flwr.edge.loaded import encoder, source_of
    from fednano_flwr.exchange.wire.tls import read_ca
    from fednano_flwr.models.bundle import EdgeBundle, open_checkpoint
    from fednano_flwr.models.device import describe_device

    edge = config.edge
    if edge.bundle and not isinstance(open_checkpoint(edge.bundle), EdgeBundle):
        raise ConfigError(
            f"edge.bundle = {edge.bundle!r}: is no edge bundle; `fednano split` writes one"
        )
    if config.exchange.ca_cert:
        read_ca("exchange.ca-cert", config.exchange.ca_cert)
    validate_dataset(config.dataset)
    describe_device("edge.device", edge.device)
    for key, folder in (("edge.state-dir", edge.state_dir), ("edge.feature-dir", edge.feature_dir)):
        if folder:
            _check_writable(key, Path(folder))
    encoder(source_of(config))


def validate_number(config: RunConfig, clients: int) -> None:
    """Check that so many clients are enough for what the config asks for.

    Raises:
        ConfigError: they are not; names the key.
    """
    training = max(1, round(config.fraction_train * clients))
    for key, there in (("min-available-nodes", clients), ("min-replies", training)):
        if config.flat()[key] > there:
            raise ConfigError(
                f"{key} = {config.flat()[key]}: with --clients {clients} and fraction-train = "
                f"{config.fraction_train:g} there are never more than {there}; raise --clients"
            )
    check_replies(config.strategy, training)


def validate_names(config: RunConfig) -> None:
    """Check that strategy, ranks, privacy and trackers are such that there are, and go together.

    Raises:
        ConfigError: otherwise; the message says what there is.
    """
    from fednano_flwr.privacy.budget import new_accountant
    from fednano_flwr.privacy.checks import check_privacy
    from fednano_flwr.strategies.registry import check_ranks, make_strategy
    from fednano_flwr.trackers.registry import tracker_classes

    make_strategy(config.strategy)
    check_ranks(config)
    check_privacy(config)
    if config.privacy.dp != "none":
        new_accountant(config.privacy.delta)
    tracker_classes(config.run.trackers)


def validate_host(config: RunConfig) -> None:
    """Check that the host can run on this machine as it is asked to.

    Raises:
        ConfigError: it cannot.
    """
    from fednano_flwr.llm.watching import check_metrics
    from fednano_flwr.models.device import describe_device
    from fednano_flwr.models.host_options import check_options, host_options
    from fednano_flwr.models.quantize import check_quantization

    check_quantization(config.llm.quantization, config.llm.device)
    check_options(host_options(config.llm), config.llm.device, config.llm.quantization)
    check_metrics(config.llm.metrics)
    describe_device("llm.device", config.llm.device)


def _check_writable(key: str, folder: Path) -> None:
    """Refuse a folder that is not there and cannot be made, or cannot be written to."""
    try:
        there = nearest(folder)
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{key}: the folder {folder} cannot be written to: {why}; set {key} to another"
        ) from None


def validate_dataset(dataset: Dataset) -> None:
    """Check what `dataset.*` names, without reading or downloading the questions.

    Raises:
        ConfigError: it is not there or does not fit; the message says what there is.
    """
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.data.registry import check_dataset

    try:
        check_dataset(dataset)
    except (DataError, ResourceError) as error:
        raise ConfigError(str(error)) from None


def read_questions(dataset: Dataset, seed: int, clients: int) -> None:
    """Read the data set once for all clients of this machine, which then find its table.

    Raises:
        ConfigError: it cannot be read, too many of its questions cannot, or they cannot be dealt to
            so many clients.
    """
    from fednano_flwr.data.errors import DataError
    from fednano_flwr.data.shard import read_shards

    try:
        read_shards(dataset, seed, clients)
    except (DataError, ResourceError) as error:
        raise ConfigError(str(error)) from None
