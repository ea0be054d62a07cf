"""The exchanges by `exchange.kind`: a module here that defines one is found by its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path

from fednano_flwr.base.defined import class_defined_in
from fednano_flwr.config import ConfigError
from fednano_flwr.config import Exchange as ExchangeConfig
from fednano_flwr.exchange.exchange import Exchange

SUPPORT = {"at_host", "errors", "exchange", "protocol", "registry", "wire"}


EXCHANGES: Mapping[str, type[Exchange]] = {
    module.name: class_defined_in(f"{__package__}.{module.name}", Exchange)
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if module.name not in SUPPORT
}


def check_exchange(config: ExchangeConfig) -> str:
    """Refuse an exchange that is not there, or in which a connector at the host has no use.

    Raises:
        ConfigError: lists those there are.
    """
    if config.kind not in EXCHANGES:
        raise ConfigError(f"exchange.kind = {config.kind!r}: must be one of {', '.join(EXCHANGES)}")
    if config.connector_at_host and not EXCHANGES[config.kind].inputs.HAS_HIDDEN:
        raise ConfigError(
            f'exchange.connector-at = "server", exchange.kind = {config.kind!r}: the host gets no '
            'features in this exchange; use exchange.kind = "lowrank"'
        )
    return f"exchange {config.kind}"
