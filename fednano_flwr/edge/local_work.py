"""What a strategy asks of its clients beyond training the adapters that they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fednano_flwr.config import FISHER_ESTIMATES

CHOICES: Mapping[str, tuple[str, ...]] = {
    "fisher": ("none", *FISHER_ESTIMATES),
    "adapters": ("global", "own", "both"),
    "data": ("own", "all"),
    "factor": ("both", "A", "B"),
}


@dataclass(frozen=True)
class LocalWork:
    """A client's work in a round, as it comes with each message.

    Attributes:
        fisher: which Fisher diagonal it estimates: none, by a pass after training ("pass"; at
            answers drawn from the model: "pass-model"; question by question: "pass-samples"),
            or from the squared gradients that training meets ("running"; in its last epoch alone:
            "running-last").
        proximal_mu: μ ≥ 0 of the proximal term that holds training to the round's start.
        adapters: what it trains and scores: the server's ("global"); its own, which start from
            the server's, stay on its disk and are never sent ("own"); or the server's and beside
            them a local one of its own ("both").
        local_rank: of that local one; 0 is the server's rank.
        data: what it trains on: its own questions, or those of all clients ("all").
        factor: of W = B A, what it trains and sends: "both", or one, the other staying as it came.

    Raises:
        ValueError: a value is not among these.
    """

    fisher: str = "none"
    proximal_mu: float = 0.0
    adapters: str = "global"
    local_rank: int = 0
    data: str = "own"
    factor: str = "both"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {choices}")
        for name in ("proximal_mu", "local_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be 0 or more")

    @property
    def uploads(self) -> bool:
        """Whether adapters come back to be merged."""
        return self.adapters != "own"

    def to_config(self) -> dict[str, Any]:
        """What differs from plain training, by the keys of a message's config."""
        plain = asdict(LocalWork())
        return {
            name.replace("_", "-"): value
            for name, value in asdict(self).items()
            if value != plain[name]
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LocalWork:
        """The work that `to_config` wrote among other keys."""
        keys = {field.name: field.name.replace("_", "-") for field in fields(cls)}
        return cls(**{name: config[key] for name, key in keys.items() if key in config})
