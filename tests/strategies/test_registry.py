from collections.abc import Callable
from typing import Any, cast

import flwr.serverapp.strategy
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fednano_flwr.adapters.product import DOWN, UP
from fednano_flwr.adapters.update import Update
from fednano_flwr.config import ConfigError, RunConfig, Strategy
from fednano_flwr.rounds.federation import Federation
from fednano_flwr.rounds.progress import Progress
from fednano_flwr.rounds.records import from_arrays, to_arrays
from fednano_flwr.rounds.timeouts import ReplyTimeout
from fednano_flwr.strategies.base import AdapterStrategy
from fednano_flwr.strategies.fednano import FedNano
from fednano_flwr.strategies.registry import (
    FLOWER,
    OWN,
    check_node_rank,
    check_ranks,
    check_unread,
    make_strategy,
    parse_args,
)
from tests.local_grid import LocalGrid
from tests.replies import train_reply

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


@pytest.mark.parametrize("name", [*(n for n in OWN if n != "locft"), *FLOWER])
def test_no_order_in_which_replies_arrive_changes_a_bit(config: Made, name: str) -> None:
    """Of twelve clients: their products are added up thinly on one site, densely on the other."""
    clients, width, ranks = 12, 48, {"image": 2, "text": 8}
    shapes = {f"{site}{DOWN}": (r, width) for site, r in ranks.items()}
    shapes |= {f"{site}{UP}": (width, r) for site, r in ranks.items()}

    def numbers(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}

    def train(message: Message, context: Context) -> Message:
        partition, wants = int(context.node_config["partition-id"]), getattr(made, "fisher", "none")
        theta, fisher = numbers(partition), {k: v**2 for k, v in numbers(99 - partition).items()}
        arrays = to_arrays(theta, fisher if wants != "none" else None)
        reply = train_reply(arrays, partition_id=partition, num_examples=3 * partition + 1)
        return Message(reply.content, reply_to=message)

    app = ClientApp()
    app.train()(train)
    found = []
    for order in (0, 1, 2):
        made, grid = make_strategy(config(name)), LocalGrid(app, {}, clients, order)
        federation = Federation(
            grid, ReplyTimeout(60, 60), clients, print, Progress(1, lambda: 0, print, None)
        )
        sent = made.configure_train(
            1, to_arrays(numbers(100)), ConfigRecord(), cast(Grid, federation.all_nodes())
        )
        merged, _ = made.aggregate_train(1, federation.ask(sent, "training").replies)
        assert merged is not None
        kept = {f"map {name}": value for name, value in getattr(made, "map", {}).items()}
        found.append(({**from_arrays(merged), **kept}, getattr(made, "notes", {})))
    for theta, notes in found[1:]:
        assert notes == found[0][1]
        assert all(torch.equal(theta[key], expected) for key, expected in found[0][0].items())


def test_own_strategies_say_which_fisher_they_need(config: Made) -> None:
    kinds = {name: getattr(make_strategy(config(name)), "fisher", "none") for name in OWN}
    assert kinds["fednano"] == "pass" and kinds["fedavg"] == "none"
    assert kinds["fednano-ef"] == kinds["fisher-product"] == "running"
    assert isinstance(make_strategy(config("fednano")), FedNano)


def test_arguments_reach_flowers_strategy(config: Made) -> None:
    made = make_strategy(config("FedAdam", "eta=0.5, tau=0.25"))
    assert (made.eta, made.tau) == (0.5, 0.25)  # type: ignore[attr-defined]


def test_an_unknown_strategy_is_refused_with_those_there_are(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"fednani.*fedavg-exact.*FedAdam"):
        make_strategy(config("fednani"))


def test_strategies_that_need_another_client_are_not_offered(config: Made) -> None:
    with pytest.raises(ConfigError, match="there is no such strategy"):
        make_strategy(config("QFedAvg"))


def test_flowers_fedprox_is_refused_with_the_name_of_the_one_that_works(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"FedProx.*'fedprox'"):
        make_strategy(config("FedProx"))
    make_strategy(config("fedprox"))


def test_an_unknown_argument_is_refused_with_those_there_are(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"FedAdam takes .*eta.*; not lr"):
        make_strategy(config("FedAdam", "lr=1"))
    with pytest.raises(ConfigError, match="fednano takes none"):
        make_strategy(config("fednano", "eta=1"))


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


class Watched:
    """A config that remembers what is read of it."""

    def __init__(self, config: Strategy) -> None:
        self.config, self.read = config, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_reads_what_it_says(config: Made, name: str) -> None:
    watched: Any = Watched(config(name))
    made = make_strategy(watched)
    assert isinstance(made, AdapterStrategy)
    theta = {f"x.lora_{k}.weight": torch.ones(shape) for k, shape in (("A", (1, 2)), ("B", (2, 1)))}
    made.sent = theta
    if made.local_work().uploads:
        made.merge([Update(0, theta, theta, 1), Update(1, theta, theta, 2)])
    in_vain = {"fisher_scale"} if name == "fisher-product" else set()
    assert watched.read - {"name", "args"} - in_vain == set(made.reads)


@pytest.mark.parametrize(
    ("name", "key", "value", "able"),
    [
        ("fedavg", "server-rate", 1.5, "fedavg-exact"),
        ("fedavg-exact", "fisher-floor", 0.1, "fednano, fednano-ef, fisher-product"),
        ("fisher-product", "fisher-scale", "client", "fednano, fednano-ef"),
        ("fedavg", "proximal-mu", 0.1, "fedprox"),
        ("fednano", "local-rank", 4, "feddpa-f"),
        ("locft", "factors", "balanced", "centralized, fedavg, fedavg-exact"),
        ("FedAdam", "weight-by", "equal", "accumulate, centralized, fedavg, fedavg-exact"),
    ],
)
def test_a_value_that_would_change_nothing_is_refused_with_the_strategies_that_use_it(
    defaults: dict[str, Any], config: Made, name: str, key: str, value: Any, able: str
) -> None:
    def changed(strategy: str) -> Strategy:
        asked = {**defaults, "strategy.name": strategy, f"strategy.{key}": value}
        return RunConfig.parse(asked).strategy

    says = rf"strategy\.{key} = {value!r}: {name} does not use it; those that do: {able}"
    with pytest.raises(ConfigError, match=says):
        check_unread(changed(name), config(name))
    for other in able.split(", "):
        check_unread(changed(other), config(other))
    check_unread(config(name), config("fedavg-exact"))
    check_unread(changed("no-such-strategy"), config(name))


class MergesNothing(AdapterStrategy):
    """Does not say how it merges."""


def test_a_strategy_that_cannot_merge_is_refused_before_anything_is_loaded(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"MergesNothing.*`merge`"):
        make_strategy(config(f"{__name__}:MergesNothing"))
