"""Several copies of the frozen language model behind one `LLMService`, as Ray actors.

An owner (a client) stays with one replica, which keeps its features. A lost replica's calls are
repeated on another, where the owner's features are missing and are sent again; a `backward` finds
its graph gone there, and the client repeats the step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from torch import Tensor

from fednano_flwr.exchange.protocol import (
    Feature,
    Generated,
    Gradient,
    Inputs,
    LLMInfo,
    LLMService,
    NewToken,
)
from fednano_flwr.llm.homes import Homes
from fednano_flwr.llm.keeper import AwayError, Keeper, Limits, LostError
from fednano_flwr.llm.parcel import pack
from fednano_flwr.llm.ray_session import ray_session

log = logging.getLogger(__name__)


class ReplicasLostError(RuntimeError):
    """No replica is left to answer, or too many were lost over one call."""


class Replicas(LLMService):
    """An `LLMService` over `count` replicas; for calls from many threads at once.

    Use it as a context manager: the block begins when every replica has been started once, and at
    its end all are gone. The thread that makes it has to live as long (see `ray_session`).

    Args:
        make: builds the service in a replica's process, where it loads its own weights; picklable,
            as a `functools.partial` of a module's function. Several threads call the service.
        count: of replicas.
        num_gpus: that Ray reserves for each: a fraction of one, or several.
        limits: times and numbers that are not in the run config.
        wait_for_ray: see `ray_session`.
        say: takes one line for people whenever a replica is lost or back.

    Raises:
        ValueError: Ray has fewer GPUs than the replicas ask for.
        ReplicasLostError: not one replica started (on entering the block).
    """

    def __init__(
        self,
        make: Callable[[], LLMService],
        count: int,
        *,
        num_gpus: float = 0.0,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        wait_for_ray: float = 0.0,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self.keepers: list[Keeper] = []
        self._limits = limits
        self._changed = threading.Condition()
        self._homes: Homes[Keeper] = Homes(limits.idle_seconds)
        self._info: LLMInfo | None = None
        self._closed = False
        with ExitStack() as stack:
            stack.enter_context(ray_session(wait_for_ray))
            gpus = ray.cluster_resources().get("GPU", 0.0)
            if count * num_gpus > gpus:
                raise ValueError(
                    f"{count} replicas (llm.replicas) of {num_gpus:g} GPUs (llm.replica-gpus) do "
                    f"not fit into the {gpus:g} GPUs that Ray has"
                )
            stack.callback(self._end)
            for number in range(count):
                self.keepers.append(
                    Keeper(number, make, num_gpus, limits, self._changed, self._accept, say)
                )
            self._stack = stack.pop_all()

    def __enter__(self) -> Replicas:
        try:
            with self._changed:
                self._changed.wait_for(lambda: all(keeper.decided for keeper in self.keepers))
                if not any(keeper.up for keeper in self.keepers):
                    raise ReplicasLostError(f"no LLM replica started: {self._history()}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all replicas; calls that are still in flight fail."""
        self._stack.close()

    def describe(self) -> LLMInfo:
        """See `LLMService.describe`; all replicas are the same."""
        if self._info is None:
            self._settle(b"", stay=True)
        assert self._info is not None
        return self._info

    def standing(self) -> dict[str, float]:
        """How many replicas take calls, and how many calls they are answering."""
        with self._changed:
            return {
                "replicas_up": sum(keeper.up for keeper in self.keepers),
                "replica_calls": sum(keeper.busy for keeper in self.keepers),
            }

    def step(self, inputs: Inputs, labels: Tensor, owner: bytes = b"") -> tuple[float, Gradient]:
        """See `LLMService.step`."""
        return self._ask(owner, "step", inputs, labels, owner)

    def forward(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> tuple[int, Tensor]:
        """See `LLMService.forward`."""
        return self._ask(owner, "forward", inputs, positions, owner)

    def backward(self, graph: int, gradient: Tensor, owner: bytes = b"") -> Gradient:
        """See `LLMService.backward`; a graph is gone when its replica was lost."""
        return self._ask(owner, "backward", graph, gradient, owner, stay=True)

    def score(
        self,
        inputs: Inputs,
        positions: Tensor,
        candidates: Tensor,
        owner: bytes = b"",
    ) -> Tensor:
        """See `LLMService.score`."""
        return self._ask(owner, "score", inputs, positions, candidates, owner)

    def next_tokens(self, inputs: Inputs, positions: Tensor, owner: bytes = b"") -> Tensor:
        """See `LLMService.next_tokens`."""
        return self._ask(owner, "next_tokens", inputs, positions, owner)

    def prefill(self, inputs: Inputs, owner: bytes = b"") -> Generated:
        """See `LLMService.prefill`."""
        return self._ask(owner, "prefill", inputs, owner)

    def decode(self, cache: int, token: NewToken, owner: bytes = b"") -> Generated:
        """See `LLMService.decode`; a cache is gone when its replica was lost."""
        return self._ask(owner, "decode", cache, token, owner, stay=True)

    def keep_features(self, features: Sequence[Feature], owner: bytes = b"") -> None:
        """See `LLMService.keep_features`; they are kept at the owner's replica."""
        self._ask(owner, "keep_features", features, owner)

    def _ask(self, owner: bytes, method: str, *arguments: Any, stay: bool = False) -> Any:
        """Call a method of the owner's replica, and of another if that is lost meanwhile."""
        parcel, losses = pack(arguments), 0
        while losses < self._limits.losses_of_a_call:
            keeper = self._settle(owner, stay)
            try:
                return keeper.call(method, parcel)
            except AwayError:
                continue
            except LostError as error:
                losses, reason = losses + 1, str(error)
        raise ReplicasLostError(
            f"{losses} LLM replicas were lost over one call ({method}), the last one: {reason}"
        )

    def _settle(self, owner: bytes, stay: bool) -> Keeper:
        """The owner's replica; one is waited for where none is up."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or any(keeper.up for keeper in self.keepers)
                    or all(keeper.given_up for keeper in self.keepers)
                ),
                self._limits.start_seconds,
            )
            if self._closed:
                raise ReplicasLostError("the LLM replicas are closed")
            up = [keeper for keeper in self.keepers if keeper.up]
            if not up:
                raise ReplicasLostError(f"no LLM replica is left: {self._history()}")
            return self._homes.of(owner, up, stay)

    def _accept(self, info: LLMInfo) -> str | None:
        """What is wrong with a replica that has loaded."""
        with self._changed:
            if self._info is None:
                self._info = info
            if info == self._info:
                return None
        return f"it is another model than the first one: {info}, not {self._info}"

    def _history(self) -> str:
        return "; ".join(
            f"replica {keeper.number} was lost {keeper.losses} times, last: {keeper.last_reason}"
            for keeper in self.keepers
        )

    def _end(self) -> None:
        with self._changed:
            self._closed = True
        for keeper in self.keepers:
            keeper.close()
        for keeper in self.keepers:
            keeper.join()
