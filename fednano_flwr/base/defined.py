"""Classes that are found by the module that defines them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def class_defined_in(module: str, base: type) -> Any:
    """The first subclass of `base` that a module defines and does not import.

    Raises:
        StopIteration: it defines none.
    """
    found = (value for value in vars(import_module(module)).values() if isinstance(value, type))
    return next(one for one in found if one.__module__ == module and issubclass(one, base))
