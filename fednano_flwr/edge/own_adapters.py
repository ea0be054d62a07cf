"""Adapters that are a client's own: kept on its disk from round to round, never sent."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel
from torch import Tensor

from fednano_flwr.adapters.site import LOCAL, adapter_state, add_adapter, load_adapter_state
from fednano_flwr.config import Adapter
from fednano_flwr.edge.local_state import OwnState
from fednano_flwr.edge.local_work import LocalWork

OWN_KEPT, LOCAL_KEPT = "own-adapters", "local-adapter"


def begin(
    adapters: PeftModel,
    theta: Mapping[str, Tensor],
    work: LocalWork,
    own: OwnState,
    config: Adapter,
    seed: int,
) -> None:
    """Set the adapters to what a message's training or scoring starts from.

    Args:
        adapters: as built; where the work wants both, a local one is added beside the first, of
            the same scale s = alpha / rank.
        theta: the server's adapters.
        own: what the client has kept.
        seed: of a local adapter's first A (its B is zero).

    Raises:
        ValueError: the parameters do not fit the adapters.
    """
    kept = own.load(OWN_KEPT) if work.adapters == "own" else None
    load_adapter_state(adapters, theta if kept is None else kept)
    if work.adapters != "both":
        return
    add_adapter(adapters, LOCAL, config.at(work.local_rank or config.rank), seed)
    if (kept := own.load(LOCAL_KEPT)) is not None:
        load_adapter_state(adapters, kept, LOCAL)


def keep(adapters: PeftModel, work: LocalWork, own: OwnState) -> None:
    """After training: keep what is the client's own."""
    if work.adapters == "own":
        own.save(OWN_KEPT, adapter_state(adapters))
    if work.adapters == "both":
        own.save(LOCAL_KEPT, adapter_state(adapters, LOCAL))
