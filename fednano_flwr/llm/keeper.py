"""Keeps one replica alive: starts its process, watches it, and starts it again when it is lost."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from fednano_flwr.exchange.protocol import LLMInfo, LLMService
from fednano_flwr.llm.parcel import Parcel, unpack
from fednano_flwr.llm.ray_actor import (
    check_ray,
    end_replica,
    one_line,
    process_of,
    start_replica,
)
from fednano_flwr.llm.replica import BROKEN, ERROR

POLL_SECONDS = 0.2
# An error of the service itself is an answer: these are of what lies between.
NOT_A_LOSS = (RayTaskError, ObjectStoreFullError, OutOfDiskError)


@dataclass(frozen=True)
class Limits:
    """How patient the replicas' keepers are; times in seconds."""

    check_seconds: float = 10.0  # between two pings, and how long each may take
    missed_checks: int = 3  # so many unanswered pings on end: hung
    stall_seconds: float = 300.0  # calls are there and none has ended for so long: hung
    start_seconds: float = 600.0  # until a started replica answers; how long calls wait for one
    pause_seconds: float = 1.0  # before a lost one is started again; doubles with each loss on end
    longest_pause: float = 60.0
    settled_seconds: float = 60.0  # one that served for so long has not failed to start
    failed_starts: int = 5  # so many on end: given up
    losses_of_a_call: int = 3  # a call that lost so many replicas is not tried on another
    concurrent_calls: int = 64  # inside one replica; its service queues them
    idle_seconds: float = 600.0  # an owner silent for so long counts for nothing in routing


class LostError(Exception):
    """The replica was lost over a call, which may be repeated on another."""


class AwayError(LostError):
    """The replica was not there when the call was to begin."""


class Keeper:
    """One replica and the thread that keeps it alive.

    Args:
        number: of this replica, from 0.
        make: builds the service in the replica's process; picklable.
        num_gpus: that Ray reserves for it.
        changed: lock and condition that all keepers share; what they publish changes under it.
        accept: says what is wrong with what a loaded replica is, or nothing.
        say: takes one line for people.

    Attributes:
        pid: its process, 0 where there is none on this machine.
        calls: when each call in flight began, by its number.
    """

    def __init__(
        self,
        number: int,
        make: Callable[[], LLMService],
        num_gpus: float,
        limits: Limits,
        changed: threading.Condition,
        accept: Callable[[LLMInfo], str | None],
        say: Callable[[str], None],
    ) -> None:
        self.number = number
        self.pid = 0
        self.losses = 0
        self.last_reason = ""
        self.given_up = False
        self.calls: dict[int, float] = {}
        self._make, self._num_gpus, self._limits = make, num_gpus, limits
        self._changed, self._accept, self._say = changed, accept, say
        self._numbers = itertools.count()
        self._actor: Any = None  # while it takes calls
        self._lost: str | None = None  # why, as a call found it
        self._last_end = 0.0
        self._closed = False
        self._thread = threading.Thread(
            target=self._keep, name=f"llm-replica-{number}", daemon=True
        )
        self._thread.start()

    @property
    def up(self) -> bool:
        return self._actor is not None

    @property
    def busy(self) -> int:
        """Calls in flight."""
        return len(self.calls)

    @property
    def decided(self) -> bool:
        """Whether the first start has ended, well or not."""
        return self.up or self.losses > 0

    def call(self, method: str, arguments: Parcel) -> Any:
        """What the replica's service answers, or the error that it raised.

        Raises:
            LostError: the replica was lost before it had answered.
            AwayError: it was not up.
        """
        with self._changed:
            actor, number = self._actor, next(self._numbers)
            if actor is None:
                raise AwayError(self.last_reason)
            self.calls[number] = time.monotonic()
        try:
            kind, parcel = ray.get(actor.call.remote(method, *arguments))
        except NOT_A_LOSS as error:
            raise RuntimeError(f"LLM replica {self.number}: {one_line(error)}") from error
        except RayError as error:
            raise self._lose(actor, one_line(error)) from error
        finally:
            with self._changed:
                if self.calls.pop(number, None) is not None:
                    self._last_end = time.monotonic()
        result = unpack(*parcel)
        if kind == BROKEN:
            raise self._lose(actor, result)
        if kind == ERROR:
            raise result
        return result

    def close(self) -> None:
        """Ask the thread to end, and the replica with it; `join` waits for that."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        self._thread.join()

    def _lose(self, actor: Any, reason: str) -> LostError:
        with self._changed:
            if self._actor is actor:  # and not its successor
                self._actor, self._lost = None, reason
                self._changed.notify_all()
        return LostError(reason)

    def _keep(self) -> None:
        pause, failed = self._limits.pause_seconds, 0
        while True:
            started = time.monotonic()
            try:
                reason = self._live()
            except Exception as error:  # of the folder for its files, or of what ends it
                reason = one_line(error)
            if reason is None or self._closed:
                return
            if time.monotonic() - started > self._limits.settled_seconds + self._loading:
                pause, failed = self._limits.pause_seconds, 0
            failed += 1
            given_up = failed >= self._limits.failed_starts
            then = (
                f"given up after {failed} losses on end"
                if given_up
                else f"starting it again in {pause:g} s"
            )
            self._tell(f"LLM replica {self.number} is lost: {reason}; {then}")
            with self._changed:
                self.losses += 1
                self.last_reason, self.given_up = reason, given_up
                self._changed.notify_all()
                if given_up or self._changed.wait_for(lambda: self._closed, pause):
                    return
            pause = min(2 * pause, self._limits.longest_pause)

    def _live(self) -> str | None:
        """Start the replica and watch it; why it was lost, or None when all is closed."""
        self._loading, self.pid = 0.0, 0
        actor: Any = None
        folder = tempfile.mkdtemp(prefix="fednano-replica-")
        try:
            check_ray()
            actor = start_replica(self._make, self._num_gpus, self._limits.concurrent_calls, folder)
            return self._load(actor) or self._watch(actor)
        except Exception as error:  # of Ray; or `make` cannot be sent
            return one_line(error)
        finally:
            with self._changed:
                self._actor = None
                self._changed.notify_all()
            if actor is not None:
                end_replica(actor, self.pid)
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self, actor: Any) -> str | None:
        """Wait until the replica serves; why it does not."""
        started = time.monotonic()
        limit = self._limits.start_seconds
        placed = actor.ping.remote()
        if not self._comes(placed, min(30.0, limit)) and not self._closed:
            self._tell(f"LLM replica {self.number} waits for its process: {self._resources()}")
            if not self._comes(placed, limit - 30.0) and not self._closed:
                return f"Ray gave it no process in {limit:g} s: {self._resources()}"
        if self._closed:
            return None
        self.pid = process_of(ray.get(placed))
        loaded = actor.load.remote()
        if not self._comes(loaded, limit - (time.monotonic() - started)):
            return None if self._closed else f"it was not loaded in {limit:g} s"
        kind, parcel = ray.get(loaded)
        info = unpack(*parcel)
        if kind == BROKEN:
            return f"it cannot be loaded: {info}"
        if kind == ERROR:
            return f"it cannot be loaded: {type(info).__name__}: {one_line(info)}"
        if problem := self._accept(info):
            return problem
        self._loading = time.monotonic() - started
        with self._changed:
            self._lost, self._actor = None, actor
            self._last_end = time.monotonic()
            self._changed.notify_all()
        if self.losses:
            self._tell(f"LLM replica {self.number} is back (process {self.pid})")
        return None

    def _watch(self, actor: Any) -> str | None:
        missed = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._lost is not None, self._limits.check_seconds
                )
                if self._closed:
                    return None
                if self._lost is not None:
                    return self._lost
                stalled = self._stalled()
            if stalled > self._limits.stall_seconds:
                return f"none of its calls ended for {stalled:.0f} s"
            check_ray()
            answer = actor.ping.remote()
            if self._comes(answer, self._limits.check_seconds):
                ray.get(answer)
                missed = 0
            elif not self._closed:
                missed += 1
            if missed >= self._limits.missed_checks:
                return f"{missed} checks of {self._limits.check_seconds:g} s without an answer"

    def _stalled(self) -> float:
        """Seconds since a call last ended, or since the oldest of those in flight began."""
        if not self.calls:
            return 0.0
        return time.monotonic() - max(self._last_end, min(self.calls.values()))

    def _comes(self, reference: Any, seconds: float) -> bool:
        """Whether an answer (or its failure) is there within the time, and before all is closed."""
        until = time.monotonic() + seconds
        while not self._closed:
            if ray.wait([reference], timeout=POLL_SECONDS)[0]:
                return True
            if time.monotonic() > until:
                return False
        return False

    def _tell(self, line: str) -> None:
        with suppress(Exception):  # a line that cannot be said costs no replica
            self._say(line)

    def _resources(self) -> str:
        if not self._num_gpus:
            return "Ray has not started it yet"
        total, free = ray.cluster_resources(), ray.available_resources()
        return (
            f"it asks for {self._num_gpus:g} GPUs (llm.replica-gpus); "
            f"{free.get('GPU', 0):g} of Ray's {total.get('GPU', 0):g} are free"
        )
