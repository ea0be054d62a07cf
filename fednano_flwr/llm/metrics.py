"""Metrics of one LLM service in Prometheus' text format, read over HTTP: `llm.metrics`.

docs/metrics.md lists them. Nothing here is global, and no label grows with the number of clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakKeyDictionary

from fednano_flwr.config import ConfigError, host_and_port
from fednano_flwr.exchange.errors import (
    FeaturesMissingError,
    GoneError,
    HostBusyError,
    RefusalError,
)
from fednano_flwr.exchange.wire.auth import TokenError
from fednano_flwr.exchange.wire.metrics import NO_METRICS, ServiceMetrics, Waiting
from fednano_flwr.llm.host import HostMemoryError

try:
    import prometheus_client as prometheus
    from prometheus_client.metrics_core import GaugeMetricFamily
except ImportError:  # only `llm.metrics` needs it
    prometheus = None  # type: ignore[assignment]

KEY = "llm.metrics"
PREFIX = "fednano_llm_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)

OUTCOMES: Mapping[type, str] = {
    type(None): "served",
    FeaturesMissingError: "missing",
    GoneError: "gone",
    CancelledError: "abandoned",
    HostBusyError: "busy",
    TokenError: "refused",
    ValueError: "refused",
    Exception: "failed",
}
REASONS = (HostBusyError, HostMemoryError, RefusalError, TokenError, ValueError)
REFUSALS = ("busy", "refused", "failed")
OTHER = "other"

GAUGES = {
    "waiting_requests": "Requests in the queue",
    "waiting_tokens": "Tokens of the requests in the queue",
    "feature_memory_bytes": "Clients' image features kept in memory",
    "feature_disk_bytes": "Clients' image features kept on disk",
    "open_graphs": "Forward passes that wait for their client's gradient",
    "kept_caches": "Batches of generated answers under way, each with its keys and values",
    "kept_cache_tokens": "Tokens that these have room for",
    "waiting_for_room": "Clients that wait for such room",
    "sessions": "Clients that train inside the language model",
    "session_bytes": "Their copies of its LoRA, with the optimizer's state",
    "worker_errors": "Errors of the thread that asks the language model",
    "replicas_up": "Replicas of the language model that take calls",
    "replica_calls": "Calls that replicas are answering",
}


class PrometheusMetrics(ServiceMetrics):
    """Keeps counters, histograms and gauges in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._began: WeakKeyDictionary[Waiting, float] = WeakKeyDictionary()
        self._calls = self._counter("calls", "Calls answered", "kind", "outcome")
        self._refusals = self._counter("refusals", "Calls and streams refused", "reason")
        for reason in (*(kind.__name__ for kind in REASONS), OTHER):
            self._refusals.labels(reason)  # at 0 from the start, so that the first one is a rise
        self._tokens = self._counter("tokens", "Tokens of the calls that were computed")
        self._received = self._counter("received_bytes", "Bytes of requests")
        self._sent = self._counter("sent_bytes", "Bytes of answers")
        self._streams = prometheus.Gauge(
            PREFIX + "open_streams", "Streams that clients have open", registry=self.registry
        )
        self._waited = self._histogram("wait_seconds", "In the queue", SECONDS, "kind")
        self._took = self._histogram(
            "compute_seconds", "From the queue to the result", SECONDS, "kind"
        )
        self._sharing = self._histogram("pass_requests", "Requests that share a pass", REQUESTS)
        self._size = self._histogram("pass_tokens", "Tokens in a pass, no padding", TOKENS)

    def answered(self, kind: str, error: Exception | None) -> None:
        outcome = next(OUTCOMES[c] for c in type(error).__mro__ if c in OUTCOMES)
        self._calls.labels(kind, outcome).inc()
        if outcome in REFUSALS:
            named = (c.__name__ for c in type(error).__mro__ if c in REASONS)
            self._refusals.labels(next(named, OTHER)).inc()

    def computed(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    def transferred(self, received: int, sent: int) -> None:
        self._received.inc(received)
        self._sent.inc(sent)

    def stream(self) -> AbstractContextManager[None]:
        return self._streams.track_inprogress()

    @contextmanager
    def forward_pass(self, requests: Collection[Waiting], tokens: int) -> Iterator[None]:
        """A request may take several passes, and waits for the first."""
        now = time.monotonic()
        for request in requests:
            if request not in self._began:
                self._began[request] = now
                self._waited.labels(request.kind).observe(now - request.asked)
        self._sharing.observe(len(requests))
        self._size.observe(tokens)
        try:
            yield
        finally:
            now = time.monotonic()
            for request in requests:
                if request.future.done():
                    self._took.labels(request.kind).observe(now - self._began.pop(request))

    def add_gauges(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        """They are read when somebody reads the metrics."""
        self.registry.register(_Gauges(gauges))

    def _counter(self, name: str, what: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(PREFIX + name, what, labels, registry=self.registry)

    def _histogram(
        self, name: str, what: str, buckets: tuple[float, ...], *labels: str
    ) -> prometheus.Histogram:
        return prometheus.Histogram(
            PREFIX + name, what, labels, registry=self.registry, buckets=buckets
        )


class _Gauges:
    """A collector of gauges whose values are asked for with each reading."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._read().items():
            yield GaugeMetricFamily(PREFIX + name, GAUGES[name], value)


def check_metrics(where: str) -> None:
    """Check that what `llm.metrics` asks for is installed.

    Raises:
        ConfigError: it is not; the message says how to install it.
    """
    if where and prometheus is None:
        raise ConfigError(
            f"{KEY} = {where!r} needs prometheus-client, which is not installed: "
            'pip install "fednano-flwr[prometheus]"'
        )


@contextmanager
def open_metrics(where: str, say: Callable[[str], None]) -> Iterator[ServiceMetrics]:
    """What a service reports to; its metrics can be read at `where` while the block runs.

    Args:
        where: `host:port`, port 0 for a free one; empty: nothing is measured, no port is opened.
        say: takes the line that says where.

    Raises:
        ConfigError: `prometheus-client` is not installed.
        OSError: the port cannot be had.
    """
    if not where:
        yield NO_METRICS
        return
    check_metrics(where)
    host, port = host_and_port(where)
    metrics = PrometheusMetrics()
    try:
        server, thread = prometheus.start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise OSError(f"cannot serve metrics at {where} ({KEY}): {error}") from error
    try:
        name = f"[{host}]" if ":" in host else host
        say(f"metrics  http://{name}:{server.server_port}/metrics")
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
