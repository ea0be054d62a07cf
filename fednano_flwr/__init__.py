"""FedNano on Flower: federated tuning of multimodal LLMs with the LLM kept on the server.

The names in `__all__` are for notebooks and scripts of one's own (docs/api.md); each is imported
when it is first used, so that `import fednano_flwr` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fednano_flwr.adapters.site import adapter_state
    from fednano_flwr.config import RunConfig
    from fednano_flwr.config.project import default_config
    from fednano_flwr.edge.client import Client
    from fednano_flwr.edge.local_work import LocalWork
    from fednano_flwr.edge.nano_edge import NanoEdge
    from fednano_flwr.edge.shard import ClientSpec
    from fednano_flwr.exchange.wire.server import serve
    from fednano_flwr.in_process import run_in_process
    from fednano_flwr.llm.service import load_host
    from fednano_flwr.runs.results import Run, load_run
    from fednano_flwr.strategies.merge import fisher_merge, weighted_mean

__all__ = [
    "Client",
    "ClientSpec",
    "LocalWork",
    "LostClientsError",
    "NanoEdge",
    "Run",
    "RunConfig",
    "adapter_state",
    "default_config",
    "fisher_merge",
    "load_host",
    "load_run",
    "run_in_process",
    "serve",
    "weighted_mean",
]
_MODULES = {
    "Client": "edge.client",
    "ClientSpec": "edge.shard",
    "LocalWork": "edge.local_work",
    "LostClientsError": "rounds.federation",
    "NanoEdge": "edge.nano_edge",
    "Run": "runs.results",
    "RunConfig": "config",
    "adapter_state": "adapters.site",
    "default_config": "config.project",
    "fisher_merge": "strategies.merge",
    "load_host": "llm.service",
    "load_run": "runs.results",
    "run_in_process": "in_process",
    "serve": "exchange.wire.server",
    "weighted_mean": "strategies.merge",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
