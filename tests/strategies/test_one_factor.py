"""Strategies that train one factor of W = B A in a round, and FedRot-LoRA, which turns both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.product import DOWN, UP, Factors, trained_part
from fednano_flwr.adapters.update import State, Update
from fednano_flwr.config import RunConfig
from fednano_flwr.edge.local_state import LocalState
from fednano_flwr.privacy.private import Private
from fednano_flwr.rounds.records import RESIDUAL, to_arrays, to_upload
from fednano_flwr.rounds.replies import receive_update
from fednano_flwr.runs.checkpoint import places, read
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.strategies.base import AdapterStrategy, local_work_of
from fednano_flwr.strategies.fedrot_lora import turned
from fednano_flwr.strategies.registry import make_strategy
from tests.local_grid import LocalGrid
from tests.replies import train_reply
from tests.strategies.factors import drawn, product

Config = Callable[..., dict[str, Any]]
HALVES = ("rolora", "ffa-lora", "fedsvd")


def made(defaults: dict[str, Any], name: str, server_round: int, sent: State) -> AdapterStrategy:
    """A strategy as it is when the replies of a round are there."""
    strategy = make_strategy(RunConfig.parse({**defaults, "strategy.name": name}).strategy)
    assert isinstance(strategy, AdapterStrategy)
    strategy.round, strategy.sent = server_round, sent
    return strategy


def updates(*thetas: State) -> list[Update]:
    return [Update(k, theta, None, 10 * (k + 1)) for k, theta in enumerate(thetas)]


def test_ffa_lora_by_hand(defaults: dict[str, Any]) -> None:
    sent = {f"x{DOWN}": torch.tensor([[1.0, 2.0]]), f"x{UP}": torch.tensor([[0.0], [0.0]])}
    one, other = ({**sent, f"x{UP}": torch.tensor(b)} for b in ([[3.0], [0.0]], [[0.0], [6.0]]))
    merged = made(defaults, "ffa-lora", 1, sent).merge(updates(one, other))  # weights 1/3 and 2/3
    assert merged[f"x{UP}"].flatten().tolist() == [1.0, 4.0]
    assert torch.equal(merged[f"x{DOWN}"], sent[f"x{DOWN}"])


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("server_round", [1, 2])
def test_the_mean_of_one_factor_is_the_mean_of_the_products(
    defaults: dict[str, Any], name: str, server_round: int
) -> None:
    sent = drawn(0)
    strategy = made(defaults, name, server_round, sent)
    part = strategy.factor(server_round)
    clients = [{**sent, **trained_part(drawn(k), part)} for k in (1, 2)]
    merged = strategy.merge(updates(*clients))
    mean = (product(clients[0]) + 2 * product(clients[1])) / 3
    assert torch.allclose(product(merged), mean, atol=1e-5)
    both = torch.stack([theta[f"x{UP}"] for theta in clients]).mean(0)
    assert part == "A" or not torch.allclose(both, clients[0][f"x{UP}"])


def test_rolora_trains_b_and_a_in_turns(defaults: dict[str, Any]) -> None:
    strategy = made(defaults, "rolora", 0, {})
    assert [local_work_of(strategy, k).factor for k in (1, 2, 3, 4)] == ["B", "A", "B", "A"]
    for name in ("ffa-lora", "fedsvd"):
        assert {made(defaults, name, 0, {}).factor(k) for k in range(1, 9)} == {"B"}
    assert made(defaults, "fedavg", 0, {}).factor(1) == "both"


def test_fedsvd_leaves_orthonormal_rows_and_the_sizes_in_b(defaults: dict[str, Any]) -> None:
    sent = drawn(0)
    client = {**sent, f"x{UP}": drawn(1)[f"x{UP}"]}
    merged = made(defaults, "fedsvd", 1, sent).merge(updates(client))
    a, b = merged[f"x{DOWN}"], merged[f"x{UP}"]
    assert torch.allclose(a @ a.T, torch.eye(3), atol=1e-6)
    sizes = torch.linalg.svdvals(product(client))[:3].float()
    assert torch.allclose(b.norm(dim=0), sizes, atol=1e-5)


def test_fedsvd_keeps_a_direction_that_nobody_has_learned_learnable(
    defaults: dict[str, Any],
) -> None:
    sent = drawn(0)
    b = drawn(1)[f"x{UP}"]
    b[:, 1:] = b[:, :1]  # of rank 1
    merged = made(defaults, "fedsvd", 1, sent).merge(updates({**sent, f"x{UP}": b}))
    a = merged[f"x{DOWN}"]
    assert torch.allclose(a @ a.T, torch.eye(3), atol=1e-6)
    assert torch.allclose(merged[f"x{UP}"][:, 1:], torch.zeros(7, 2))
    nothing = made(defaults, "fedsvd", 1, sent).merge(
        updates({**sent, f"x{UP}": torch.zeros(7, 3)})
    )
    assert not nothing[f"x{UP}"].any() and nothing[f"x{DOWN}"].any()


def rotated(theta: State, seed: int) -> State:
    """The same product in other factors."""
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return {f"x{DOWN}": q.T @ theta[f"x{DOWN}"], f"x{UP}": theta[f"x{UP}"] @ q}


@pytest.mark.parametrize("server_round", [2, 3])
def test_fedrot_lora_undoes_what_only_turns_a_clients_factors(
    defaults: dict[str, Any], server_round: int
) -> None:
    sent = drawn(0)
    turned_ones = [rotated(sent, seed) for seed in (1, 2)]
    merged = made(defaults, "fedrot-lora", server_round, sent).merge(updates(*turned_ones))
    assert torch.allclose(product(merged), product(sent), atol=1e-5)
    plain = made(defaults, "fedavg", server_round, sent).merge(updates(*turned_ones))
    assert (product(plain) - product(sent)).norm() > 0.1 * product(sent).norm()


def test_fedrot_lora_turns_a_in_even_rounds_b_in_odd_ones_and_nothing_in_the_first(
    defaults: dict[str, Any],
) -> None:
    sent, client = drawn(0), drawn(1)
    pair = Factors(client[f"x{DOWN}"], client[f"x{UP}"])
    start = Factors(sent[f"x{DOWN}"], sent[f"x{UP}"])
    for server_round in (2, 3):
        found = made(defaults, "fedrot-lora", server_round, sent).merge(updates(client))
        expected = turned(pair, start, by_a=server_round == 2)
        assert torch.allclose(found[f"x{DOWN}"].double(), expected.a, atol=1e-6)
        # No other rotation brings that factor nearer.
        near = found[f"x{DOWN}"] - start.a if server_round == 2 else found[f"x{UP}"] - start.b
        for seed in range(20):
            other = rotated(found, seed)
            far = other[f"x{DOWN}"] - start.a if server_round == 2 else other[f"x{UP}"] - start.b
            assert near.norm() <= far.norm() + 1e-6
    fresh = {**sent, f"x{UP}": torch.zeros(7, 3)}
    first = made(defaults, "fedrot-lora", 1, fresh).merge(updates(client))
    assert all(torch.equal(first[name], client[name]) for name in client)


def run(flat: dict[str, Any], grid: type[LocalGrid] = LocalGrid) -> RunFolder:
    return server_app.federate(grid(client_app.app, flat, 3), 1, RunConfig.parse(flat))


def states(folder: RunFolder) -> list[State]:
    """The server's adapters after each round."""
    found = [read(place) for place in places(folder.path / "checkpoints")]
    return [one.theta for one in sorted(found, key=lambda one: one.round)]


def moved(before: State, after: State) -> set[str]:
    return {
        factor
        for factor in ("A", "B")
        for name, value in trained_part(after, factor).items()
        if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize(
    ("exchange", "upload"), [("lowrank", "float32"), ("embeddings", "float32"), ("lowrank", "int8")]
)
def test_rolora_moves_one_factor_a_round_and_uploads_half(
    run_config: Config, exchange: str, upload: str
) -> None:
    keys = {
        "exchange__kind": exchange,
        "upload__adapters": upload,
        "num_server_rounds": 3,
        "run__keep_checkpoints": 4,
    }
    half = run(run_config(run__name="half", strategy__name="rolora", **keys))
    start, first, second, third = states(half)
    assert [moved(start, first), moved(first, second), moved(second, third)] == [
        {"B"},
        {"A"},
        {"B"},
    ]
    assert half.rounds[3]["train_loss"] < half.rounds[1]["train_loss"]
    whole = run(run_config(run__name="whole", strategy__name="fedavg", **keys))

    def uploaded(folder: RunFolder) -> int:
        return folder.rounds[1]["round_bytes_up"] - folder.rounds[0]["round_bytes_up"]

    sent = 3 * to_arrays(first).count_bytes() / (1 if upload == "float32" else 4)
    assert uploaded(whole) - uploaded(half) == pytest.approx(sent / 2, rel=0.25)


@pytest.mark.parametrize("name", ["ffa-lora", "fedsvd", "fedrot-lora"])
def test_the_others_learn_too(run_config: Config, name: str) -> None:
    folder = run(run_config(strategy__name=name, run__keep_checkpoints=3))
    assert folder.rounds[2]["train_loss"] < folder.rounds[1]["train_loss"]
    start, first, _ = states(folder)
    assert moved(start, first) == ({"B"} if name == "ffa-lora" else {"A", "B"})


def test_a_reply_with_the_factor_that_was_not_asked_for_is_refused() -> None:
    sent = drawn(0)
    with pytest.raises(ValueError, match=r"adapters have shapes"):
        receive_update(train_reply(to_arrays(sent)), to_arrays(sent), factor="B")
    with pytest.raises(ValueError, match=r"adapters have shapes"):
        receive_update(train_reply(to_arrays(trained_part(sent, "A"))), to_arrays(sent), factor="B")


def test_what_rounding_left_of_a_factor_waits_for_its_next_round(
    defaults: dict[str, Any], tmp_path: Path
) -> None:
    upload = RunConfig.parse({**defaults, "upload.adapters": "int4"}).upload
    sent, client = drawn(0), drawn(1)

    def round_of(number: int, factor: str) -> State:
        state = LocalState(tmp_path, number)
        to_upload(trained_part(client, factor), None, sent, upload, state)
        found = LocalState(tmp_path, number + 1).load(RESIDUAL)
        assert found is not None
        return found

    first, second = round_of(1, "B"), round_of(2, "A")
    assert set(first) == {f"x{UP}"} and set(second) == {f"x{UP}", f"x{DOWN}"}
    assert torch.equal(second[f"x{UP}"], first[f"x{UP}"]) and first[f"x{UP}"].any()
    assert not torch.equal(round_of(3, "B")[f"x{UP}"], first[f"x{UP}"])


PRIVATE = {
    "privacy__noise_multiplier": 1.0,
    "privacy__clip_norm": 0.1,
    "strategy__weight_by": "equal",
    "run__keep_checkpoints": 3,
}


@pytest.mark.parametrize("dp", ["server-fixed", "client-fixed", "client-adaptive"])
@pytest.mark.parametrize("name", ["ffa-lora", "rolora"])
def test_noise_is_in_the_trained_factor_alone(run_config: Config, dp: str, name: str) -> None:
    pytest.importorskip("dp_accounting")
    folder = run(run_config(strategy__name=name, privacy__dp=dp, **PRIVATE))
    assert not folder.rounds[1]["failures"]["train"] and not folder.rounds[2]["failures"]["train"]
    start, first, second = states(folder)
    assert moved(start, first) == {"B"}
    assert moved(first, second) == ({"A"} if name == "rolora" else {"B"})
    noised = torch.cat([v.flatten() for v in trained_part(first, "B").values()])
    assert noised.std() == pytest.approx(0.1 / 3, rel=0.15)  # noise · clip norm / clients


class Asked(LocalGrid):
    """Remembers what clients were asked to do."""

    asked: list[dict[str, Any]]

    def answer(self, message: Message) -> list[Message]:
        if message.metadata.message_type == "train":
            self.asked.append(dict(message.content.config_records["config"]))
        return super().answer(message)


def test_within_differential_privacy_clients_do_what_the_named_strategy_asks(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.setattr(Asked, "asked", [], raising=False)
    flat = run_config(
        strategy__name="fedprox",
        strategy__proximal_mu=0.3,
        privacy__dp="server-fixed",
        num_server_rounds=1,
        **PRIVATE,
    )
    run(flat, Asked)
    assert [one.get("proximal-mu") for one in Asked.asked] == [0.3] * 3
    named = make_strategy(RunConfig.parse(flat).strategy)
    private = Private.__new__(Private)
    private.named = named
    assert local_work_of(private) == local_work_of(named)
