"""What runs in the process of a replica: a service of its own, and answers that always travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fednano_flwr.exchange.protocol import LLMService
from fednano_flwr.llm.parcel import Parcel, pack, unpack

VALUE, ERROR, BROKEN = "value", "error", "broken"
Answer = tuple[str, Parcel]
"""A result; or the service's own error; or why this process can do no more."""

# After an error of the device itself every later call of the process fails as well.
DEVICE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in [getattr(torch, "AcceleratorError", None)] if kind is not None
)


class Replica:
    """A service and the errors it raises, as parcels."""

    def __init__(self, make: Callable[[], LLMService]) -> None:
        self._make = make
        self._service: LLMService | None = None

    def load(self) -> Answer:
        """Build the service; answers with its `LLMInfo`."""

        def build() -> Any:
            self._service = self._make()
            return self._service.describe()

        return _answer(build)

    def call(self, method: str, data: bytes, buffers: Sequence[np.ndarray]) -> Answer:
        """Answer one call; its arguments came as a parcel."""
        return _answer(lambda: getattr(self._service, method)(*unpack(data, buffers)))


def _answer(work: Callable[[], Any]) -> Answer:
    try:
        return VALUE, pack(work())
    except DEVICE_ERRORS as error:
        return BROKEN, pack(f"{type(error).__name__}: {error}")
    except Exception as error:
        return ERROR, _packed(error)


def _packed(error: Exception) -> Parcel:
    """The error itself, or its text where it cannot travel or would arrive as something else."""
    try:
        parcel = pack(error)
        if type(unpack(*parcel)) is type(error):
            return parcel
    except Exception:  # whatever an error's own pickling may raise
        pass
    return pack(RuntimeError(f"{type(error).__name__}: {error}"))
