"""When the LLM service last served each node, and how often: how it is known that all get on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.methods import METHODS


class Activity:
    """The time of each owner's last served call; asked and told from several threads.

    Args:
        clock: seconds that only ever grow, as `time.monotonic`'s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[bytes, float] = {}
        self._steps = 0
        self._lock = threading.Lock()

    def served(self, owner: bytes, computed: bool = False) -> None:
        """Note that a call of this owner (`tokens.owner`) was served just now.

        Args:
            computed: by the language model; not only known or kept.
        """
        with self._lock:
            self._last[owner] = self._clock()
            self._steps += computed

    def steps(self) -> int:
        """How many calls the language model has computed so far, of all owners together."""
        with self._lock:
            return self._steps

    def last_seen(self, owner: bytes) -> float | None:
        """When that was, by the clock; None where it never was."""
        with self._lock:
            return self._last.get(owner)


def is_progress(answer: pb.Answer) -> bool:
    """Whether something was computed or kept for the caller, and not only said why not."""
    return answer.WhichOneof("what") in METHODS


def is_step(answer: pb.Answer) -> bool:
    """Whether the language model computed something for the caller."""
    return is_progress(answer) and answer.WhichOneof("what") != "keep_features"
