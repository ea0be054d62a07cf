"""The exchanges by `exchange.kind`. A new one is a file, its message in the .proto, a line here."""

from __future__ import annotations

from collections.abc import Mapping

from fednano_flwr.exchange.embeddings import EmbeddingsExchange
from fednano_flwr.exchange.exchange import Exchange
from fednano_flwr.exchange.lowrank import LowRankExchange

EXCHANGES: Mapping[str, type[Exchange]] = {
    "embeddings": EmbeddingsExchange,
    "lowrank": LowRankExchange,
}
