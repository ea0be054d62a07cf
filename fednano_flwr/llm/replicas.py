"""Several copies of the frozen language model behind one `LLMService`, as Ray actors.

An owner (a client) has a replica of its own, which keeps its features. While that is lost another
one answers, where the owner's features are missing and are sent again; a `backward` finds its graph
gone there, and the client repeats the step. Ray starts a lost replica again, on any machine of its
cluster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    RayError,
    RayTaskError,
    UnserializableException,
)

from fednano_flwr.exchange.at_host import AtHost
from fednano_flwr.exchange.protocol import Inputs, LLMInfo, LLMService
from fednano_flwr.llm.replica_actor import (
    OtherModelError,
    StoredPart,
    ray_session,
    send_tensors_beside,
    start_replica,
)

log = logging.getLogger(__name__)

STALL_SECONDS = 300.0
"""A replica of which no call has ended for so long hangs, and is ended."""
START_SECONDS = 600.0
"""How long calls wait for a replica to start where none is up."""
TELL_SECONDS = 30.0
"""Somebody should know of a start that takes longer."""
CLOSE_SECONDS = 5.0
LOSSES_OF_A_CALL = 3
"""A call over which so many replicas were lost may be what ends them."""
LONGEST_REASON = 300

# After an error of the device itself every later call of the process fails as well.
FATAL = (OtherModelError, *filter(None, [getattr(torch, "AcceleratorError", None)]))
NOT_A_LOSS = (ObjectStoreFullError, OutOfDiskError, UnserializableException)


class ReplicasLostError(RuntimeError):
    """No replica is left to answer, or too many were lost over one call."""


class _LostError(Exception):
    """A replica was lost over a call, which may be repeated on another."""


class _Replica:
    """One actor, and what is known of it.

    Attributes:
        starting: its answer to `describe`, awaited; None once it is up, or lost for good.
        process, ended_process: names its latest process, and the latest that was to be ended.
        busy: calls in flight.
        ended: when a call last ended, by `time.monotonic`.
        losses, reason: how often it was lost, and why it was last.
    """

    def __init__(self, number: int, actor: Any) -> None:
        self.number, self.actor = number, actor
        self.starting: Any = actor.describe.remote()
        self.up = False
        self.process = self.ended_process = b""
        self.busy = self.losses = 0
        self.ended = 0.0
        self.reason = "not started yet"


class Replicas(LLMService):
    """An `LLMService` over `count` replicas; for calls from many threads at once.

    Use it as a context manager: the block begins when every replica has been started, or cannot be,
    and at its end all are gone. The thread that makes it has to live as long (see `ray_session`).

    Args:
        make: builds the service in a replica's process, where it loads its own weights; picklable,
            as a `functools.partial` of a module's function. Several threads call the service.
        count: of replicas.
        num_gpus: that Ray reserves for each: a fraction of one, or several.
        wait_for_ray: see `ray_session`.
        say: takes one line for people whenever a replica is lost or back.
        stall_seconds, start_seconds: see `STALL_SECONDS`, `START_SECONDS`.

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
        wait_for_ray: float = 0.0,
        say: Callable[[str], None] = log.warning,
        stall_seconds: float = STALL_SECONDS,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._say = say
        self._lock = threading.RLock()
        self._owners: dict[bytes, int] = {}  # in the order of their first calls
        self._info: LLMInfo | None = None
        self._stored: StoredPart | None = None
        self._closed = False
        self.replicas: list[_Replica] = []
        with ExitStack() as stack:
            stack.enter_context(ray_session(wait_for_ray))
            gpus = ray.cluster_resources().get("GPU", 0.0)
            if count * num_gpus > gpus:
                raise ValueError(
                    f"{count} replicas (llm.replicas) of {num_gpus:g} GPUs (llm.replica-gpus) do "
                    f"not fit into the {gpus:g} GPUs that Ray has"
                )
            send_tensors_beside()
            folder = stack.enter_context(
                TemporaryDirectory(prefix="fednano-replicas-", ignore_cleanup_errors=True)
            )
            stack.callback(self._end)
            for number in range(count):
                self.replicas.append(_Replica(number, start_replica(make, num_gpus, folder)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Replicas:
        try:
            started = [replica.starting for replica in self.replicas]
            _, late = ray.wait(started, num_returns=len(started), timeout=TELL_SECONDS)
            if late:
                total, free = ray.cluster_resources(), ray.available_resources()
                self._say(
                    f"{len(late)} LLM replicas are not up yet; {free.get('GPU', 0):g} of Ray's "
                    f"{total.get('GPU', 0):g} GPUs are free (llm.replica-gpus)"
                )
                left = self._start_seconds - TELL_SECONDS
                ray.wait(started, num_returns=len(started), timeout=max(0.0, left))
            self._look()
            if not any(replica.up for replica in self.replicas):
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
        assert self._info is not None, "the block has not begun"
        return self._info

    def forget_sessions(self) -> None:
        """See `LLMService.forget_sessions`; a replica that is lost has none left."""
        with self._lock:
            up = [replica for replica in self.replicas if replica.up]
        for replica in up:
            with suppress(_LostError):
                self._ask(replica, "forget_sessions")

    def gauges(self) -> dict[str, float]:
        """How many replicas take calls, and how many calls they are answering."""
        with self._lock:
            return {
                "replicas_up": sum(replica.up for replica in self.replicas),
                "replica_calls": sum(replica.busy for replica in self.replicas),
            }

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        """Answer a call by the owner's replica, or by another if that is lost."""
        arguments = tuple(self._with_stored_part(one) for one in arguments)
        for _ in range(LOSSES_OF_A_CALL):
            try:
                return self._ask(self._replica_of(owner), method, *arguments, owner)
            except _LostError as error:
                reason = str(error)
        raise ReplicasLostError(
            f"{LOSSES_OF_A_CALL} LLM replicas were lost over one call ({method}), the last one: "
            f"{reason}"
        )

    def _with_stored_part(self, argument: Any) -> Any:
        """An argument of a call, what it is computed with given to Ray, once for all replicas."""
        part = argument.at_host if isinstance(argument, Inputs) else argument
        if not isinstance(part, AtHost):
            return argument
        with self._lock:
            if self._stored is None or self._stored.name != part.name:
                self._stored = StoredPart(part.name, ray.put(part))
            stored = self._stored
        return argument.with_(at_host=stored) if isinstance(argument, Inputs) else stored

    def _replica_of(self, owner: bytes) -> _Replica:
        """The owner's replica, or another that is up; one is waited for where none is."""
        until = time.monotonic() + self._start_seconds
        while ray.is_initialized() and not self._closed:
            with self._lock:
                self._look()
                turn, place = divmod(
                    self._owners.setdefault(owner, len(self._owners)), len(self.replicas)
                )
                up = [replica for replica in self.replicas if replica.up]
                if up:
                    own = self.replicas[place]
                    return own if own.up else up[turn % len(up)]
                starting = [r.starting for r in self.replicas if r.starting is not None]
                if not starting or time.monotonic() > until:
                    raise ReplicasLostError(f"no LLM replica is left: {self._history()}")
            ray.wait(starting, timeout=1.0)
        raise ReplicasLostError("the LLM replicas are closed")

    def _look(self) -> None:
        """See which of the replicas that are starting are up, or cannot be started."""
        with self._lock:
            for replica in self.replicas:
                if replica.starting is None or not ray.wait([replica.starting], timeout=0)[0]:
                    continue
                try:
                    replica.process, info = ray.get(replica.starting)
                    if replica.process == replica.ended_process:  # it has not ended yet
                        replica.starting = replica.actor.describe.remote()
                        continue
                    self._info = self._info or info
                    if info != self._info:
                        ray.kill(replica.actor)
                        raise OtherModelError(f"another model than the first one: {info}")
                except (RayError, OtherModelError) as error:
                    replica.reason = _one_line(error)
                    self._tell(f"LLM replica {replica.number} cannot be started: {replica.reason}")
                else:
                    replica.up = True
                    if replica.losses:
                        self._tell(f"LLM replica {replica.number} is back")
                replica.starting = None

    def _ask(self, replica: _Replica, name: str, *arguments: Any) -> Any:
        """The replica's answer, or the error that its service raised.

        Raises:
            _LostError: the replica was lost before it had answered.
        """
        with self._lock:
            losses, began = replica.losses, time.monotonic()
            replica.busy += 1
        try:
            answer = replica.actor.call.remote(self._info, name, *arguments)
            while not ray.wait([answer], timeout=self._stall_seconds)[0]:
                still = time.monotonic() - max(replica.ended, began)
                if still >= self._stall_seconds:
                    reason = f"none of its calls ended for {still:.0f} s"
                    raise self._lose(replica, losses, reason, end=True)
            return ray.get(answer)
        except RayTaskError as error:
            if isinstance(error.cause, FATAL):
                reason = f"{type(error.cause).__name__}: {_one_line(error.cause)}"
                raise self._lose(replica, losses, reason, end=True) from error
            raise error.cause from error
        except NOT_A_LOSS as error:
            raise RuntimeError(f"LLM replica {replica.number}: {_one_line(error)}") from error
        except RayError as error:
            raise self._lose(replica, losses, _one_line(error)) from error
        finally:
            with self._lock:
                replica.busy -= 1
                replica.ended = time.monotonic()

    def _lose(
        self, replica: _Replica, losses: int, reason: str, *, end: bool = False
    ) -> _LostError:
        """Note that a replica is lost that had been lost `losses` times; Ray starts it again."""
        with self._lock:
            if replica.losses == losses and not self._closed:
                replica.losses, replica.reason, replica.up = losses + 1, reason, False
                self._tell(f"LLM replica {replica.number} is lost: {reason}; Ray starts it again")
                if end:
                    replica.ended_process = replica.process
                    ray.kill(replica.actor, no_restart=False)
                replica.starting = replica.actor.describe.remote()
        return _LostError(reason)

    def _tell(self, line: str) -> None:
        with suppress(Exception):  # a line that cannot be said costs no replica
            self._say(line)

    def _history(self) -> str:
        return "; ".join(
            f"replica {replica.number} was lost {replica.losses} times, last: {replica.reason}"
            for replica in self.replicas
        )

    def _end(self) -> None:
        with self._lock:
            self._closed = True
        if not ray.is_initialized():  # it was ended meanwhile, and the replicas with it
            return
        closing = [replica.actor.close.remote() for replica in self.replicas if replica.up]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for replica in self.replicas:
            ray.kill(replica.actor)


def _one_line(error: BaseException) -> str:
    """The last line of an error, which says most; Ray's run over many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].partition(" Some common")[0][:LONGEST_REASON]
