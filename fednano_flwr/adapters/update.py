"""A client's update: the input of merging."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Update:
    """One client's reply.

    Attributes:
        partition: of the client; replies are merged in its order.
        theta: adapter parameters after local training, by name.
        fisher: Fisher diagonals by the same names, where the strategy asked for them.
        num_examples: questions trained on.
    """

    partition: int
    theta: State
    fisher: State | None
    num_examples: int
