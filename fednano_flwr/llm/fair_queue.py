"""The order in which clients' samples go through the language model.

Each owner (client) has a clock that advances with its served tokens, and the owner with the lowest
clock is next (start-time fair queueing, Goyal, Vin & Cheng, IEEE/ACM ToN 1997). So a client with
large requests waits for clients with small ones, not the other way round.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from fednano_flwr.llm.jobs import Job, KindOfPass, Request, Sample, Task

PADDING = 4
"""At most one in so many tokens of a pass may be padding."""
TOKENS_OF_A_TASK = 64
"""What one without tokens counts as: else its owner's clock stood still, and all waited for it."""


@dataclass
class _Entry:
    """A waiting request, and those of its samples that no pass has taken yet, longest first."""

    work: Request[Any]
    samples: list[Sample] = field(default_factory=list)


class FairQueue:
    """Waiting requests; not safe for several threads.

    Args:
        batch_tokens: most tokens in a pass, padding included, but for a sample that is longer
            alone; 0: a pass serves one whole request.
    """

    def __init__(self, batch_tokens: int = 0) -> None:
        self._batch_tokens = batch_tokens
        self._waiting: dict[bytes, deque[_Entry]] = {}
        self._clocks: dict[bytes, int] = {}
        self._now = 0

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._waiting.values())

    @property
    def tokens(self) -> int:
        """Tokens that no pass has taken yet."""
        return sum(
            sum(sample.length for sample in entry.samples) or entry.work.tokens
            for entries in self._waiting.values()
            for entry in entries
        )

    @property
    def owners(self) -> set[bytes]:
        """Owners with a waiting request."""
        return set(self._waiting)

    def waiting_of(self, owner: bytes) -> int:
        """Requests of this owner that wait."""
        return len(self._waiting.get(owner, ()))

    def fills_a_pass(self) -> bool:
        """Whether waiting for more requests could not make the next pass larger."""
        return self.tokens >= self._batch_tokens

    def clear(self) -> list[Request[Any]]:
        """Remove and return all waiting requests."""
        left = [entry.work for entries in self._waiting.values() for entry in entries]
        self._waiting.clear()
        return left

    def add(self, work: Request[Any]) -> None:
        """Add a request."""
        samples = work.samples() if isinstance(work, Job) else []
        if self._batch_tokens:
            samples.sort(key=lambda sample: sample.length, reverse=True)
        if work.owner not in self._waiting:
            self._waiting[work.owner] = deque()
            clock = max(self._now, self._clocks.get(work.owner, 0))
            self._clocks[work.owner] = clock
        self._waiting[work.owner].append(_Entry(work, samples))

    def next(self) -> list[Sample] | Task[Any] | None:
        """The next pass, or a task to do alone; None if nothing waits.

        Requests whose client has gone are left out.
        """
        self._forget_done()
        if not self._waiting:
            return None
        lead = min(self._waiting, key=self._clock)
        self._now = self._clocks[lead]
        entry = self._waiting[lead][0]
        if isinstance(entry.work, Task):
            self._took(lead, entry.work.tokens or TOKENS_OF_A_TASK)
            return entry.work
        if not self._batch_tokens:
            samples, entry.samples = entry.samples, []
            self._took(lead, entry.work.tokens)
            return samples
        return self._shared_pass(lead)

    def _shared_pass(self, lead: bytes) -> list[Sample]:
        """Samples of the owner with the lowest clock, then of others in the order of theirs."""
        taken: list[Sample] = []
        givers = list(self._waiting)
        kind = self._kind(lead)
        while givers := [o for o in givers if o in self._waiting and self._kind(o) == kind]:
            owner = min(givers, key=self._clock) if taken else lead
            samples = self._waiting[owner][0].samples
            if taken and not self._fits(taken, samples[0]):
                givers.remove(owner)
                continue
            taken.append(samples.pop(0))
            self._took(owner, taken[-1].length)
        return taken

    def _kind(self, owner: bytes) -> KindOfPass | None:
        """Kind of pass of an owner's next samples; None if a task is next."""
        work = self._waiting[owner][0].work
        return work.kind_of_pass if isinstance(work, Job) else None

    def _fits(self, taken: list[Sample], sample: Sample) -> bool:
        lengths = [s.length for s in taken] + [sample.length]
        padded = len(lengths) * max(lengths)
        return padded <= self._batch_tokens and PADDING * (padded - sum(lengths)) <= padded

    def _took(self, owner: bytes, tokens: int) -> None:
        """Advance an owner's clock, and remove its request if all of it is taken."""
        self._clocks[owner] += tokens
        entries = self._waiting[owner]
        if not entries[0].samples:
            entries.popleft()
        if not entries:
            del self._waiting[owner]
            self._forget_clocks()

    def _forget_done(self) -> None:
        for owner in list(self._waiting):
            left = deque(entry for entry in self._waiting[owner] if _is_open(entry.work))
            if left:
                self._waiting[owner] = left
            else:
                del self._waiting[owner]

    def _forget_clocks(self) -> None:
        """Drop clocks of owners that have nothing waiting and would start from now anyway."""
        for owner in [o for o, c in self._clocks.items() if c <= self._now]:
            if owner not in self._waiting:
                del self._clocks[owner]

    def _clock(self, owner: bytes) -> int:
        return self._clocks[owner]


def _is_open(work: Request[Any]) -> bool:
    """Whether a request has no result yet and still needs one."""
    if not work.future.done() and not work.is_wanted():
        work.fail(CancelledError())
    return not work.future.done()
