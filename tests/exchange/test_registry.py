"""Exchanges are found by the names of their files."""

import pytest

from fednano_flwr.config import ConfigError
from fednano_flwr.exchange.registry import EXCHANGES, check_exchange


def test_each_exchange_is_found_and_another_name_is_refused_with_those_there_are() -> None:
    assert {"embeddings", "lowrank"} <= set(EXCHANGES)
    with pytest.raises(ConfigError, match=r"exchange\.kind = 'ranks'.*embeddings, lowrank"):
        check_exchange("ranks")
