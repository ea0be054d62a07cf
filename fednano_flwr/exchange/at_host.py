"""Parts of the model that are at the host alone: set by the ServerApp, and never sent to a client.

A call is computed with those of the phase that its token is for, however late that is.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

FACTOR = b"factor:"
"""How keys of factors begin, and no others: they are kept in float32, whatever the host's dtype."""


@dataclass(frozen=True, eq=False)
class HostMap:
    """A frozen linear map of each site, before the language model.

    h' = h + M h + z Bᵀ, M = P Q.

    Attributes:
        factors: of each site, Q (R, d) and P (d, R), which holds the scale s; float32.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    _placed: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def change(self, site: str, hidden: Tensor) -> Tensor | None:
        """M h (n, d) in float32 of frozen embeddings (n, d); None where the site has no map."""
        if site not in self.factors:
            return None
        place = site, hidden.device
        if place not in self._placed:  # a device gets it once
            down, up = self.factors[site]
            self._placed[place] = down.to(hidden.device), up.to(hidden.device)
        down, up = self._placed[place]
        return hidden.to(down.dtype) @ down.T @ up.T


@dataclass(frozen=True)
class LoraPlan:
    """How a session trains the LoRA inside the language model; names as in the run config.

    Attributes:
        proximal_mu: μ ≥ 0 of the proximal term that holds it to the round's start.
        factor: "both", or "A" or "B" alone, the other staying as it was.
        fisher: whether some steps' squared gradients are asked for.
    """

    learning_rate: float
    weight_decay: float
    proximal_mu: float = 0.0
    factor: str = "both"
    fisher: bool = False


@dataclass(frozen=True, eq=False)
class HostLora:
    """The LoRA inside the language model, as the last merge left it.

    Attributes:
        values: by the names of `adapters.llm_lora`; float32.
        plan: how sessions train it; None where nobody trains.
    """

    values: Mapping[str, Tensor]
    plan: LoraPlan | None = None

    def frozen(self) -> HostLora:
        """One on the same layers that changes nothing: the model before training."""
        return HostLora({name: torch.zeros_like(value) for name, value in self.values.items()})


def factor_key(rows: Tensor) -> bytes:
    """What clients and host call a factor: A (r, d), or Bᵀ (r, d), float32."""
    found = hashlib.sha256(str(tuple(rows.shape)).encode())
    found.update(rows.detach().cpu().contiguous().numpy().tobytes())
    return FACTOR + found.digest()[:16]


@dataclass(frozen=True, eq=False)
class AtHost:
    """What the calls of one phase are computed with.

    Attributes:
        factors: those of the merged NanoAdapters, as `factor_key` calls them: clients name them
            where they do not train them.
        name: of this one and no other.
    """

    map: HostMap | None = None
    lora: HostLora | None = None
    factors: Mapping[bytes, Tensor] = field(default_factory=dict)
    name: int = field(default_factory=lambda: secrets.randbits(63))


class Turn(NamedTuple):
    """Which step of which session a training call is.

    Attributes:
        session: its number at the host.
        number: of the step, from 1 on.
        factor: by which all gradients of the step before were scaled down (clipping).
        updates: whether the step changes the LoRA, as in training.
        measures: whether its squared gradients count for the Fisher diagonal.
    """

    session: int
    number: int
    factor: float = 1.0
    updates: bool = True
    measures: bool = False


@dataclass(frozen=True, eq=False)
class SessionResult:
    """What a session has led to.

    Attributes:
        theta: all parameters of the LoRA, by name; float32.
        fisher: mean squared gradients of those that were trained, where some step measured.
    """

    theta: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor] | None = None
