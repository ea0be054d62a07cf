from collections.abc import Callable
from typing import Any

import flwr.serverapp.strategy
import pytest

from fednano_flwr.config import ConfigError, RunConfig, Strategy
from fednano_flwr.strategies.fednano import FedNano
from fednano_flwr.strategies.registry import (
    FLOWER,
    OWN,
    check_node_rank,
    check_ranks,
    check_strategy,
    make_strategy,
    parse_args,
)

Made = Callable[..., Strategy]


@pytest.fixture(scope="module")
def config(defaults: dict[str, Any]) -> Made:
    """The run config's section as it is by default, but for a strategy's name and arguments."""

    def make(name: str, args: str = "") -> Strategy:
        changed = {**defaults, "strategy.name": name, "strategy.args": args}
        return RunConfig.parse(changed).strategy

    return make


@pytest.mark.parametrize("name", [*OWN, *FLOWER])
def test_every_listed_strategy_can_be_made(config: Made, name: str) -> None:
    assert isinstance(make_strategy(config(name)), flwr.serverapp.strategy.FedAvg)


def test_own_strategies_say_which_fisher_they_need(config: Made) -> None:
    kinds = {name: getattr(make_strategy(config(name)), "fisher", "none") for name in OWN}
    assert kinds["fednano"] == "pass" and kinds["fedavg"] == "none"
    assert kinds["fednano-ef"] == kinds["fisher-product"] == "running"
    assert isinstance(make_strategy(config("fednano")), FedNano)


def test_arguments_reach_flowers_strategy(config: Made) -> None:
    made = make_strategy(config("FedAdam", "eta=0.5, tau=0.25"))
    assert (made.eta, made.tau) == (0.5, 0.25)  # type: ignore[attr-defined]


def test_an_unknown_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"fednani.*fednano, fednano-ef, fedavg.*FedAdam"):
        check_strategy("fednani")


def test_strategies_that_need_another_client_are_not_offered() -> None:
    with pytest.raises(ConfigError, match="there is no such strategy"):
        check_strategy("QFedAvg")


def test_flowers_fedprox_is_refused_with_the_name_of_the_one_that_works() -> None:
    with pytest.raises(ConfigError, match=r"FedProx.*strategy\.name = 'fedprox'"):
        check_strategy("FedProx")
    check_strategy("fedprox")


def test_an_unknown_argument_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"FedAdam takes .*eta.*; not lr"):
        check_strategy("FedAdam", "lr=1")
    with pytest.raises(ConfigError, match="fednano takes none"):
        check_strategy("fednano", "eta=1")


@pytest.mark.parametrize("text", ["eta", "eta=x", "=1x"])
def test_malformed_arguments_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be numbers"):
        parse_args(text)


LOWER_RANKS = [
    ({"strategy.name": "fedavg"}, "needs adapters of rank adapter.rank from every client"),
    ({"upload.adapters": "int4"}, "packed adapters are changes of those"),
    ({"strategy.server-rate": 1.5}, "what a client of a lower rank cannot hold"),
    ({"strategy.server-rate": 0.0}, "what a client of a lower rank cannot hold"),
]


@pytest.mark.parametrize(("keys", "says"), LOWER_RANKS)
def test_lower_ranks_are_refused_where_they_cannot_be_merged(
    defaults: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        check_ranks(RunConfig.parse({**defaults, **keys, "adapter.ranks": "4,16"}))
    assert "adapter.ranks" in str(refused.value)
    check_ranks(RunConfig.parse({**defaults, **keys, "adapter.ranks": "16,16"}))


@pytest.mark.parametrize(("keys", "says"), LOWER_RANKS)
def test_a_nodes_lower_rank_is_refused_where_it_cannot_be_merged(
    defaults: dict[str, Any], keys: dict[str, Any], says: str
) -> None:
    config = RunConfig.parse({**defaults, **keys})
    with pytest.raises(ConfigError, match=says) as refused:
        check_node_rank(4, config)
    assert "the node config's adapter-rank" in str(refused.value)
    check_node_rank(16, config)
    check_node_rank(4, RunConfig.parse(defaults))
