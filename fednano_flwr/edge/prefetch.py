"""One item prepared in the background while the one before it is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prefetch(items: Iterable[Item], prepare: Callable[[Item], Prepared]) -> Iterator[Prepared]:
    """Yield `prepare(item)` of each item in order, preparing one item ahead in one thread.

    Every item is prepared once, one at a time; beside the one that the caller works on, no more
    than one is held. What `prepare` raises is raised at its own item, after the earlier ones were
    yielded. When iteration ends, so has the thread, also where the caller stops early or raises.

    Args:
        items: drawn in the caller's thread, one ahead of what is yielded.
        prepare: runs in the background. A new thread has PyTorch's defaults for gradient mode and
            autocast, so it sets those that it needs itself.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    coming: deque[Future[Prepared]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(prepare, item))
            if len(coming) > 1:
                yield coming.popleft().result()
        if coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
