"""One client that sends a large wrong update: who is refused, and which strategies stand it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter, Bounds, RunConfig
from fednano_flwr.exchange.at_host import SessionResult
from fednano_flwr.rounds.bounds import clipped, norm
from fednano_flwr.rounds.records import to_arrays, to_update
from fednano_flwr.rounds.replies import receive_update
from fednano_flwr.runs.folder import RunFolder
from tests.local_grid import LocalGrid
from tests.replies import train_reply

Config = Callable[..., dict[str, Any]]
A, B = "text.lora_A.weight", "text.lora_B.weight"
SENT = {A: torch.ones(4, 6), B: torch.zeros(6, 4)}
FISHER = {A: torch.full((4, 6), 0.5), B: torch.full((6, 4), 0.5)}
FAR = 30.0
"""How far each number of the wrong update is from what was sent: far, and no absurd norm."""


class Malicious(LocalGrid):
    """Client 1 sends the round's adapters with `far` added to every number."""

    far = FAR

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        arrays = replies[0].content.array_records.get("arrays")
        if arrays and self.nodes[message.metadata.dst_node_id] == 1:
            sent = message.content.array_records["arrays"]
            wrong = {k: Array((sent[k].numpy() + self.far).astype(np.float32)) for k in sent}
            replies[0].content["arrays"] = ArrayRecord({**arrays, **wrong})
        return replies


class Absurd(Malicious):
    far = 1e9


def run(flat: dict[str, Any], grid: type[LocalGrid], clients: int) -> RunFolder:
    return server_app.federate(grid(client_app.app, flat, clients), 1, RunConfig.parse(flat))


def distance(folder: RunFolder, flat: dict[str, Any]) -> float:
    """The largest change of a number in the adapters."""
    adapter = Adapter(flat["adapter.rank"], flat["adapter.alpha"], 0.0, flat["adapter.sites"])
    start = adapter_state(build_adapters(48, adapter, flat["seed"]))
    last = load_file(folder.path / "adapters" / "last" / "adapter_model.safetensors")
    return max(float((last[name] - value).abs().max()) for name, value in start.items())


def test_an_absurd_update_is_refused_with_both_numbers_and_the_round_goes_on(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = run_config(num_server_rounds=1, local_epochs=1)
    folder = run(flat, Absurd, clients=3)
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    refusal = folder.rounds[1]["failures"]["train"]["client 1"]
    assert "above bounds.max-update-norm = 10000" in refusal and "e+10" in refusal
    assert distance(folder, flat) < 1
    assert "client 1 failed: reply refused: the update has the norm" in capsys.readouterr().out


def test_an_absurd_fisher_diagonal_is_refused_with_both_numbers() -> None:
    huge = {name: value * 1e9 for name, value in FISHER.items()}
    with pytest.raises(ValueError, match=r"norm 3\.464e\+09, above bounds\.max-fisher-norm = 1e"):
        receive_update(
            train_reply(to_arrays(SENT, huge)), to_arrays(SENT), "pass", bounds=Bounds(0, 1e6, 0)
        )


def test_without_bounds_nothing_is_refused_and_nothing_scaled() -> None:
    far = {name: value + 1e9 for name, value in SENT.items()}
    reply = train_reply(to_arrays(far))
    receive_update(reply, to_arrays(SENT), bounds=Bounds(0, 0, 0))
    assert torch.equal(to_update(reply).theta[A], far[A])


def test_adapters_of_a_lower_rank_are_bounded_by_their_own_norm() -> None:
    lower = {A: torch.full((2, 6), 1e6), B: torch.zeros(6, 2)}
    with pytest.raises(ValueError, match=r"norm 3\.464e\+06, above"):
        receive_update(
            train_reply(to_arrays(lower)), to_arrays(SENT), lower_ranks=True, bounds=Bounds(9, 0, 0)
        )


def test_inside_the_language_model_the_change_counts_whatever_the_rank_beside_it() -> None:
    """24 numbers there are 1 away from those that were sent: √24 = 4.899."""
    inside = {f"llm.q.lora_{f}.weight": torch.full((2, 6), 100.0) for f in "AB"}
    ended = SessionResult({name: value + 1 for name, value in inside.items()})

    def receive(most: float) -> None:
        receive_update(
            train_reply(to_arrays({A: torch.zeros(2, 6), B: torch.zeros(6, 2)}), llm_session=3),
            to_arrays({**SENT, **inside}),
            lower_ranks=True,
            bounds=Bounds(most, 0, 0),
            result_of=lambda number: ended,
        )

    receive(5.0)
    with pytest.raises(ValueError, match=r"the update has the norm 4\.899"):
        receive(4.8)


def test_a_long_update_is_scaled_down_to_the_norm_in_its_own_direction() -> None:
    far = {A: SENT[A] + 3, B: SENT[B] - 4}
    reply = train_reply(to_arrays(far))
    receive_update(reply, to_arrays(SENT), bounds=Bounds(0, 0, 2.0))
    got = to_update(reply).theta
    change = {name: got[name] - SENT[name] for name in SENT}
    assert norm(change) == pytest.approx(2.0, rel=1e-6)
    assert torch.allclose(change[A] / change[B].T, torch.full((4, 6), -0.75))


def test_a_short_update_is_left_as_it_is() -> None:
    near = {A: SENT[A] + 0.01, B: SENT[B]}
    assert clipped(near, SENT, 2.0) is near


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "clients"),
    [
        ("Krum", "num_malicious_nodes=1", 5),
        ("MultiKrum", "num_malicious_nodes=1,num_nodes_to_select=3", 5),
        ("Bulyan", "num_malicious_nodes=1", 7),
        ("FedTrimmedAvg", "beta=0.2", 5),
        ("FedMedian", "", 5),
    ],
)
def test_a_robust_strategy_is_not_moved_by_one_malicious_client(
    run_config: Config, name: str, args: str, clients: int
) -> None:
    one = {"num_server_rounds": 1, "local_epochs": 1, "strategy__args": args}
    flat = run_config(strategy__name=name, **one)
    folder = run(flat, Malicious, clients)
    assert len(folder.rounds[1]["train_loss_per_client"]) == clients, "no reply is refused"
    assert 0 < distance(folder, flat) < 0.5


@pytest.mark.slow
def test_a_plain_mean_is_moved_by_one_malicious_client_but_not_with_clipping(
    run_config: Config,
) -> None:
    gone = []
    for clip in (0.0, 0.5):
        one = {"num_server_rounds": 1, "local_epochs": 1, "strategy__weight_by": "equal"}
        name = f"clip-{clip}"
        flat = run_config(
            strategy__name="fedavg", run__name=name, bounds__clip_update_norm=clip, **one
        )
        gone.append(distance(run(flat, Malicious, 5), flat))
    assert gone[0] > FAR / 5 - 1 and gone[1] < 0.5


@pytest.mark.slow
def test_a_strategy_that_merges_nothing_leaves_the_adapters_and_says_so(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"strategy__name": "Bulyan", "strategy__args": "num_malicious_nodes=1"}
    flat = run_config(num_server_rounds=1, local_epochs=1, **args)
    folder = run(flat, LocalGrid, 3)
    assert distance(folder, flat) == 0
    assert "round 1: Bulyan merged nothing; the adapters stay" in capsys.readouterr().out


def test_fewer_replies_than_a_strategy_needs_are_said_each_round(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"strategy__name": "Krum", "strategy__args": "num_malicious_nodes=1"}
    run(run_config(num_server_rounds=1, local_epochs=1, **args), LocalGrid, 2)
    assert "round 1: strategy.name = 'Krum'" in (said := capsys.readouterr().out)
    assert "needs 5 clients that train in a round, and there are 2" in said
