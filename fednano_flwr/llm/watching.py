"""Whether a service is measured, and where its metrics can be read: `llm.metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from fednano_flwr.config import ConfigError, host_and_port
from fednano_flwr.exchange.wire.watch import UNWATCHED, Watch

KEY = "llm.metrics"


def check_metrics(where: str) -> None:
    """Check that what `llm.metrics` asks for is installed.

    Raises:
        ConfigError: it is not; the message says how to install it.
    """
    if not where:
        return
    try:
        import_module("prometheus_client")
    except ImportError as error:
        raise ConfigError(
            f"{KEY} = {where!r} needs prometheus-client, which is not installed ({error}): "
            'pip install "fednano-flwr[prometheus]"'
        ) from error


@contextmanager
def watching(where: str, say: Callable[[str], None]) -> Iterator[Watch]:
    """What a service is told to report to; its metrics are at `where` while the block runs.

    Args:
        where: `host:port`, port 0 for a free one; empty: nobody measures, and no port is opened.
        say: takes the line that says where.

    Raises:
        ConfigError: `prometheus-client` is not installed.
        OSError: the port cannot be had.
    """
    if not where:
        yield UNWATCHED
        return
    check_metrics(where)
    from fednano_flwr.llm.prometheus import Prometheus, exposed

    host, port = host_and_port(where)
    watch = Prometheus()
    try:
        pages = exposed(watch.registry, host, port)
    except OSError as error:
        raise OSError(f"cannot serve metrics at {where} ({KEY}): {error}") from error
    with pages as address:
        say(f"metrics  http://{address}/metrics")
        yield watch
