"""Which tensors of a checkpoint, and which of their rows, are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from safetensors import safe_open

from fednano_flwr.models import weights
from fednano_flwr.models.families import canonical


class Opened(dict[str, set[int]]):
    """Canonical tensor name → its rows that were read; a scalar has row 0."""

    def add(self, key: str, rows: range) -> None:
        self.setdefault(canonical(key), set()).update(rows)

    def inside(self, *parts: str) -> set[str]:
        """Names of the tensors that lie in one of some parts of the model."""
        return {name for name in self if name.startswith(parts)}


class _File:
    """A safetensors file that notes what is taken from it."""

    def __init__(self, opened: Opened, *args: Any, **kwargs: Any) -> None:
        self._opened, self._file = opened, safe_open(*args, **kwargs)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_tensor(self, key: str) -> Any:
        tensor = self._file.get_tensor(key)
        self._opened.add(key, range(tensor.shape[0] if tensor.dim() else 1))
        return tensor

    def get_slice(self, key: str) -> _Slice:
        return _Slice(self._opened, key, self._file.get_slice(key))


class _Slice:
    def __init__(self, opened: Opened, key: str, stored: Any) -> None:
        self._opened, self._key, self._stored = opened, key, stored
        self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

    def __getitem__(self, rows: slice) -> Any:
        self._opened.add(self._key, range(*rows.indices(self.get_shape()[0])))
        return self._stored[rows]


@contextmanager
def recorded() -> Iterator[Opened]:
    """Note what is read from here on."""
    opened = Opened()
    with mock.patch.object(weights, "safe_open", lambda *a, **k: _File(opened, *a, **k)):
        yield opened
