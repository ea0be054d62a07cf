"""Graphs between the two halves of a step whose labels stay with the client."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fednano_flwr.exchange.protocol import GraphGoneError
from fednano_flwr.llm.between_calls import BetweenCalls
from fednano_flwr.llm.embedding import Embedded


@dataclass(frozen=True)
class Graph:
    """A forward pass that waits for the gradient of its logits.

    Attributes:
        embedded: the batch.
        rows: (N, d) its rows as the leaf of the graph.
        logits: (P, vocabulary).
    """

    embedded: Embedded
    rows: Tensor
    logits: Tensor


class Graphs(BetweenCalls[Graph]):
    """Open graphs; an owner has one, the latest."""

    what, waits_for = "graphs", "their clients' gradients"
    gone = GraphGoneError
