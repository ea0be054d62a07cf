"""Exchanges are found by the names of their files."""

from dataclasses import replace
from typing import Any

import pytest

from fednano_flwr.config import ConfigError, RunConfig
from fednano_flwr.exchange.registry import EXCHANGES, check_exchange


def test_each_exchange_is_found_and_another_name_is_refused_with_those_there_are(
    defaults: dict[str, Any],
) -> None:
    assert {"embeddings", "lowrank"} <= set(EXCHANGES)
    with pytest.raises(ConfigError, match=r"exchange\.kind = 'ranks'.*embeddings, lowrank"):
        check_exchange(replace(RunConfig.parse(defaults).exchange, kind="ranks"))


def test_a_connector_at_the_host_is_refused_where_the_host_gets_no_features(
    defaults: dict[str, Any],
) -> None:
    config = {**defaults, "exchange.connector-at": "server", "exchange.kind": "embeddings"}
    with pytest.raises(ConfigError, match=r"exchange\.connector-at.*lowrank"):
        check_exchange(RunConfig.parse(config).exchange)
