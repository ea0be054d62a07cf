"""The exchanges by `exchange.kind`: a module here that defines one is found by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path

from fednano_flwr.base.defined import class_defined_in
from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.exchange import Exchange

SUPPORT = {"at_host", "exchange", "protocol", "registry", "wire"}


EXCHANGES: Mapping[str, type[Exchange]] = {
    module.name: class_defined_in(f"{__package__}.{module.name}", Exchange)
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
