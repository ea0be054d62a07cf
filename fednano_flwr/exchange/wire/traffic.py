"""What a client's steps cost on the wire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class StepTraffic:
    """Step traffic of one client, counted on serialized messages, repeats included.

    Attributes:
        bytes_up: bytes of requests sent to the host.
        bytes_down: bytes of its replies.
        calls: requests that were answered.
        retries: requests sent again after a failure.
        seconds: time spent waiting for answers, retries included.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    calls: int = 0
    retries: int = 0
    seconds: float = 0.0
