"""FedNano-EF: Fisher merging without the extra pass."""

from __future__ import annotations

from fednano_flwr.strategies.fednano import FedNano


class FedNanoEF(FedNano):
    """Fisher merging with the squared gradients that training met anyway."""

    fisher = "running"
