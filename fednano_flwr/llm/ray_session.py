"""Ray for the length of a `with` block: the one this process has, or one of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

POLL_SECONDS = 0.1


@contextmanager
def ray_session(wait_seconds: float = 0.0) -> Iterator[None]:
    """Ray is there inside the block; it is ended afterwards only if it was started here.

    Ray's processes end with the thread that started them, so the block has to stay in one thread
    that lives as long.

    Args:
        wait_seconds: how long somebody else in this process may take to start Ray, as Flower does
            in a simulation at the same time as it starts the ServerApp; 0 where nobody will.

    Raises:
        TimeoutError: Ray did not come.
    """
    until = time.monotonic() + wait_seconds
    while not ray.is_initialized() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    if ray.is_initialized():
        yield
        return
    if wait_seconds > 0:
        raise TimeoutError(f"Ray, which the LLM's replicas need, was not up in {wait_seconds:g} s")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",  # never a cluster that happens to be up
        num_cpus=1,  # Ray starts as many idle workers; replicas take none
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
