"""An `LLMService` that treats all calls alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fednano_flwr.exchange.protocol import Feature, Generated, Gradient, Inputs, NewToken


class ForwardingService:
    """The calls of an `LLMService`; a subclass says in `_call` what becomes of any of them."""

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        """Carry out a call of `LLMService`, by its method's name."""
        raise NotImplementedError

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        return self._call("step", owner, inputs, labels)

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        return self._call("forward", owner, inputs, positions)

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        return self._call("backward", owner, graph, gradient)

    def score(
        self, inputs: Inputs, positions: Tensor, candidates: Tensor, owner: bytes = b""
    ) -> Tensor:
        return self._call("score", owner, inputs, positions, candidates)

    def next_tokens(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> Tensor:
        return self._call("next_tokens", owner, inputs, positions)

    def prefill(self, inputs: Inputs, owner: bytes = b"") -> Generated:
        return self._call("prefill", owner, inputs)

    def decode(self, cache: int, token: NewToken, owner: bytes = b"") -> Generated:
        return self._call("decode", owner, cache, token)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        self._call("keep_features", owner, features)
