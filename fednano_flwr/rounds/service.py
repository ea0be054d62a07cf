"""The LLM service of a run: host, port, tokens and progress of each client, while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from fednano_flwr.adapters.host_map import by_site
from fednano_flwr.adapters.product import DOWN
from fednano_flwr.adapters.update import State
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.edge.training import learning_rate
from fednano_flwr.exchange.at_host import HostMap, LoraPlan, SessionResult, factor_key
from fednano_flwr.exchange.protocol import LLMInfo
from fednano_flwr.exchange.wire.auth import Tokens, owner
from fednano_flwr.exchange.wire.nodes import Activity, NodeLimits
from fednano_flwr.exchange.wire.server import serve
from fednano_flwr.exchange.wire.tls import read_identity
from fednano_flwr.llm.finished import FinishedSessions
from fednano_flwr.llm.metrics import open_metrics
from fednano_flwr.llm.service import open_host


@dataclass(frozen=True)
class RunService:
    """A running LLM service, as the ServerApp uses it.

    Attributes:
        info: the language model.
        address: `host:port` that clients dial.
        tls: whether it speaks TLS.
        tokens: of the phase that is under way.
        activity: when each client was last served.
        finished: the clients' sessions that have ended in this round.
    """

    run_id: int
    info: LLMInfo
    address: str
    tls: bool
    tokens: Tokens
    activity: Activity
    finished: FinishedSessions

    def last_seen(self, node: int) -> float | None:
        """When a node was last served, by `time.monotonic`; None if it never was."""
        return self.activity.last_seen(owner(self.run_id, node))

    def result_of(self, node: int, session: int) -> SessionResult:
        """What a node's session has led to.

        Raises:
            ValueError: it has ended none of this number.
        """
        return self.finished.result(owner(self.run_id, node), session)


def host_map(state: State, scale: float) -> HostMap | None:
    """A strategy's map as calls carry it to the host; None where there is none.

    Args:
        scale: s of the adapters, which is the map's too.

    Raises:
        ValueError: a number of it is not finite.
    """
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError("the map at the host has values that are infinite or not a number")
    sites = by_site(state).items()
    return HostMap({site: (f.a, scale * f.b) for site, f in sites}) if state else None


def named_factors(theta: State) -> dict[bytes, Tensor]:
    """The factors of merged NanoAdapters by the keys that clients name them by."""
    rows = (value if name.endswith(DOWN) else value.T.contiguous() for name, value in theta.items())
    return {factor_key(one): one for one in rows}


def lora_plan(config: RunConfig, server_round: int, work: LocalWork) -> LoraPlan:
    """How sessions of a round train the LoRA inside the language model."""
    rate = learning_rate(config, server_round, config.adapter.llm_learning_rate)
    return LoraPlan(rate, config.weight_decay, work.proximal_mu, work.factor, work.fisher != "none")


@contextmanager
def open_service(
    config: RunConfig, run_id: int, simulated: bool, say: Callable[[str], None]
) -> Iterator[RunService]:
    """Load the LLM half and serve it while the block runs.

    Raises:
        ConfigError: the model or a value of `llm.*` cannot be used.
        OSError: the port is taken.
    """
    llm, adapter = config.llm, config.adapter
    identity, tokens, activity = read_identity(llm), Tokens(run_id), Activity()
    with (
        open_metrics(llm.metrics, say) as metrics,
        open_host(
            config.model,
            llm,
            simulated,
            say,
            metrics,
            adapter if adapter.at_llm else None,
            config.edge.dtype if config.exchange.connector_at_host else "",
        ) as host,
        serve(
            finished := FinishedSessions(host),
            llm.bind,
            llm.port,
            llm.max_clients,
            tokens,
            identity,
            NodeLimits(llm.node_requests_per_second),
            activity,
            metrics,
        ) as bound,
    ):
        address = llm.address or bound
        tls = identity is not None
        yield RunService(run_id, host.describe(), address, tls, tokens, activity, finished)
