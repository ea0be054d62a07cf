"""Two adapters at once, one shared and one of the client's own, after FedDPA."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from fednano_flwr.edge.local_work import LocalWork
from fednano_flwr.strategies.fedavg import AdapterFedAvg


class FedDPAF(AdapterFedAvg):
    """The global adapter is averaged; each client's local one stays on its disk.

    From FedDPA (Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models",
    NeurIPS 2024): a client has a global and a local adapter, h' = h + s B A h + s B_l A_l h, and
    only the global one is sent and averaged. Here both are trained at once, by one optimizer, and
    scored together with equal weight. The paper's weighting of the two by each test instance, and
    its training of one after the other, are not here.
    """

    reads: ClassVar[tuple[str, ...]] = (*AdapterFedAvg.reads, "local_rank")

    def local_work(self) -> LocalWork:
        both = replace(super().local_work(), adapters="both")
        return replace(both, local_rank=self.config.local_rank)
