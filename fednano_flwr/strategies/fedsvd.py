"""FedSVD: clients train B alone, and each merge turns A towards what has been learned."""

from __future__ import annotations

from collections.abc import Sequence

from fednano_flwr.adapters.product import (
    Factors,
    adapters_of,
    as_long_as,
    mean_product,
    state_of,
)
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.strategies.ffa_lora import FFALoRA


class FedSVD(FFALoRA):
    """FFA-LoRA, and then B A = U diag(σ) V: A = V, B = U diag(σ)  (Lee et al., NeurIPS 2025).

    The product stays the same, and the rows of A, which the clients train B along, become
    orthonormal. A direction that the product does not use keeps a unit row of A and B = 0. Under
    differential privacy only B has noise; what the server makes of it costs no further privacy.
    """

    def merge(self, updates: Sequence[Update]) -> State:
        merged = adapters_of(super().merge(updates))
        return state_of({name: _orthonormal(factors) for name, factors in merged.items()})


def _orthonormal(factors: Factors) -> Factors:
    rank = len(factors.a)
    size = factors.a.double().norm()
    unit = factors.a.double() * (rank**0.5 / size) if size > 0 else factors.a.double()
    return as_long_as(mean_product([factors], [1.0]), rank, Factors(unit, factors.b.double()))
