"""Rounds of small adapters that add up to one of any rank, at the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from fednano_flwr.adapters.host_map import grown
from fednano_flwr.adapters.product import Factors, adapters_of, state_of
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.base.seeds import Purpose, derive_seed
from fednano_flwr.strategies.base import AdapterStrategy


class Accumulate(AdapterStrategy):
    """M ← M + Σ_k p_k B_k A_k, p_k = w_k / Σ w; then B = 0, and A is drawn anew.

    A client's low-rank updates one after another, as in ReLoRA (Lialin et al., ICLR 2024), and
    several clients' products side by side, as in FLoRA (Wang et al., NeurIPS 2024). There a client
    adds them to its frozen weights, and in FLoRA downloads those of all. Here they stay at the
    host, and a client's download is the adapters'. A is drawn as the first one was, uniformly from
    ±1/√d, from the run's seed and the round.
    """

    keeps_map: ClassVar[bool] = True
    begins_anew: ClassVar[bool] = True
    merges_ranks: ClassVar[bool] = True
    without_privacy: ClassVar[str] = (
        "it merges products B A, and what is clipped and noised is the mean of their factors"
    )
    reads: ClassVar[tuple[str, ...]] = ("weight_by",)

    def merge(self, updates: Sequence[Update]) -> State:
        shares = self.shares(updates)
        clients, before = [adapters_of(update.theta) for update in updates], adapters_of(self.map)
        drawn = torch.Generator().manual_seed(
            derive_seed(Purpose.ROUND_ADAPTERS, self.seed, self.round)
        )
        fresh: dict[str, Factors] = {}
        after: dict[str, Factors] = {}
        for name, sent in adapters_of(self.sent).items():
            after[name] = grown(before.get(name), [client[name] for client in clients], shares)
            a = nn.init.kaiming_uniform_(torch.empty_like(sent.a), math.sqrt(5), generator=drawn)
            fresh[name] = Factors(a, torch.zeros_like(sent.b))
        self.keep(after)
        return state_of(fresh)
