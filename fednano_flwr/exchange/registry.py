"""The exchanges by `exchange.kind`: a module here that defines one is found by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.exchange import Exchange

SUPPORT = {"exchange", "protocol", "registry", "wire"}


def _defined_in(name: str) -> type[Exchange]:
    module = import_module(f"{__package__}.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type))
    here = (one for one in classes if one.__module__ == module.__name__)
    return next(one for one in here if issubclass(one, Exchange))


EXCHANGES: Mapping[str, type[Exchange]] = {
    module.name: _defined_in(module.name)
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if module.name not in SUPPORT
}


def check_exchange(kind: str) -> str:
    """Refuse an exchange that is not there.

    Raises:
        ConfigError: lists those there are.
    """
    if kind not in EXCHANGES:
        raise ConfigError(f"exchange.kind = {kind!r}: must be one of {', '.join(EXCHANGES)}")
    return f"exchange {kind}"
