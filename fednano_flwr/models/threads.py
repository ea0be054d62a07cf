"""How many threads PyTorch computes with, for as long as something of this project does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int = 0) -> Iterator[None]:
    """`count` threads inside the block, 0 for as many as there are; as many as before after it."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
