"""The language model in this process, and what is kept for it between questions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

from fednano_flwr.exchange.protocol import (
    HostBusyError,
    HostRefusedError,
    HostUnreachableError,
    LLMInfo,
    LLMService,
)

PICTURES = 8
"""Of the last so many pictures the features are kept."""


class Here(LLMService):
    """An `LLMService` in this process that refuses as one behind a wire does."""

    def __init__(self, service: LLMService) -> None:
        self._service = service

    def describe(self) -> LLMInfo:
        return self._service.describe()

    def _call(self, method: str, owner: bytes, *arguments: Any) -> Any:
        try:
            return getattr(self._service, method)(*arguments, owner)
        except HostBusyError as busy:
            raise HostUnreachableError(str(busy)) from busy
        except ValueError as refusal:
            raise HostRefusedError(str(refusal)) from refusal


class LastFeatures:
    """Features of the pictures that were asked about last; older ones are computed anew."""

    def __init__(self, most: int = PICTURES) -> None:
        self._most = most
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def __setitem__(self, key: str, value: Tensor) -> None:
        self._kept[key] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
