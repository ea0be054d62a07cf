"""What the run config names and only this machine knows, checked before anything is started."""

from __future__ import annotations

from fednano_flwr.config import ConfigError, Dataset, RunConfig
from fednano_flwr.resources import ResourceError


def validate(config: RunConfig) -> None:
    """Check that data set, strategy and model are there and fit.

    Also that the run's folder is there, or is not, as `resume` says, and that the host can run here
    as asked for: the server is started on this machine.

    A data set that a module writes (`module:NAME`) is written here, once for all clients.

    Raises:
        ConfigError: otherwise; the message says what there is.
    """
    # Imported here: they bring torch and Flower, which `fednano --help` must not wait for.
    from fednano_flwr.exchange.tls import read_ca, read_identity
    from fednano_flwr.models.bundle import EdgeBundle, check_weights, open_checkpoint
    from fednano_flwr.models.source import check_model
    from fednano_flwr.resume import continues, folder_of

    if config.edge.bundle and not isinstance(open_checkpoint(config.edge.bundle), EdgeBundle):
        raise ConfigError(
            f"edge.bundle = {config.edge.bundle!r}: is no edge bundle; `fednano split` writes one"
        )
    read_identity(config.llm)
    if config.exchange.ca_cert:
        read_ca("exchange.ca-cert", config.exchange.ca_cert)
    validate_dataset(config.dataset)
    validate_names(config)
    validate_host(config)
    check_model(config.model.name, config.model.revision)
    continues(config, folder_of(config))
    check_weights(config.model, edge=not config.edge.bundle)


def validate_names(config: RunConfig) -> None:
    """Check that strategy, ranks, privacy and trackers are such that there are, and go together.

    Raises:
        ConfigError: otherwise; the message says what there is.
    """
    from fednano_flwr.privacy.budget import new_accountant
    from fednano_flwr.privacy.checks import check_privacy
    from fednano_flwr.strategies.registry import check_ranks, check_strategy
    from fednano_flwr.trackers.registry import tracker_classes

    check_strategy(config.strategy.name, config.strategy.args)
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
    from fednano_flwr.models.host_options import check_options, host_options
    from fednano_flwr.models.quantize import check_quantization

    check_quantization(config.llm.quantization, config.llm.device)
    check_options(host_options(config.llm), config.llm.device, config.llm.quantization)
    check_metrics(config.llm.metrics)


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
    from fednano_flwr.data.registry import load_questions
    from fednano_flwr.data.shard import all_shards

    try:
        all_shards(load_questions(dataset), dataset, seed, clients)
    except (DataError, ResourceError) as error:
        raise ConfigError(str(error)) from None
