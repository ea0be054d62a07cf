"""Means are compared between rounds that the same clients scored, and between no others."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import RunConfig
from fednano_flwr.runs import comparable
from fednano_flwr.runs.folder import RunFolder
from fednano_flwr.runs.summary import closing_table, kinds_table, lost_lines

Config = Callable[..., dict[str, Any]]
WIDTH = 48


def rounds(*accuracies: dict[str, float | None]) -> list[dict[str, Any]]:
    """Records with these accuracies of clients."""
    found = []
    for number, of_clients in enumerate(accuracies):
        known = [value for value in of_clients.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        found.append({"round": number, "accuracy": mean, "accuracy_per_client": of_clients})
    return found


def best(*accuracies: dict[str, float | None]) -> int:
    return comparable.best(rounds(*accuracies))["round"]


def test_a_round_0_that_a_client_missed_is_not_compared() -> None:
    assert best({"0": 0.9}, {"0": 0.4, "1": 0.4}, {"0": 0.5, "1": 0.5}, {"0": 0.9}) == 2


def test_rounds_that_as_many_but_other_clients_scored_are_not_compared() -> None:
    assert best({"0": 0.2, "1": 0.4}, {"1": 0.8, "2": 0.9}, {"0": 0.3, "1": 0.4}) == 2
    assert best({"0": 0.2}, {"1": 0.9}) == 0


def test_a_client_that_is_away_in_every_round_does_not_matter() -> None:
    assert best({"0": 0.2, "2": 0.2}, {"0": 0.4, "2": 0.4}) == 1


def test_where_no_round_is_whole_those_of_the_most_clients_are_compared() -> None:
    assert best({"0": 0.9}, {"1": 0.2, "2": 0.2}, {"1": 0.3, "2": 0.3}, {"0": 0.4, "1": 0.9}) == 2


def test_a_client_without_test_questions_changes_no_mean() -> None:
    assert best({"0": 0.2, "1": None}, {"0": 0.4}) == 1
    assert best({"0": None}, {"0": None}) == 0


def test_of_equally_good_rounds_the_earliest_is_the_best() -> None:
    assert best({"0": 0.2}, {"0": 0.4}, {"0": 0.4}) == 1


def test_of_rounds_with_one_score_that_with_the_least_loss_is_the_best() -> None:
    found = rounds({"0": 0.0}, {"0": 0.0}, {"0": 0.0}, {"0": 0.0})
    for record, loss in zip(found, (1.2, 0.8, 0.8, 0.9), strict=True):
        record["test_loss"] = loss
    assert comparable.best(found)["round"] == 1


def test_a_further_round_is_the_best_or_leaves_the_best_as_it_is() -> None:
    """So a run, which has the adapters of two rounds at a time, can keep those of the best."""
    draw = random.Random(0)
    changed = 0
    for _ in range(300):
        found = rounds(
            *(
                {client: draw.randrange(4) / 4 for client in "012" if draw.random() < 0.6}
                for _ in range(8)
            )
        )
        for number in range(1, len(found)):
            before, after = (comparable.best(found[:end]) for end in (number, number + 1))
            assert after in (before, found[number])
            changed += after is not before
    assert changed > 100


PARTIAL = ({"0": 0.9}, {"1": 0.95}, {"0": 0.3, "1": 0.5}, {"0": 0.2, "1": 0.5}, {"1": 0.9})


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_a_resumed_run_keeps_the_same_best_adapters(run_config: Config, stopped: int) -> None:
    """Whether or not the best round was there when it was stopped."""
    flat = run_config(num_server_rounds=len(PARTIAL) - 1, resume="auto", run__name="run")
    config = RunConfig.parse(flat)
    made = [
        adapter_state(build_adapters(WIDTH, config.adapter, seed)) for seed in range(len(PARTIAL))
    ]
    for begin, end in ((0, stopped), (stopped, len(PARTIAL))):
        with RunFolder(config) as folder:
            for record, theta in list(zip(rounds(*PARTIAL), made, strict=True))[begin:end]:
                folder.append(record, theta, WIDTH)
    assert json.loads((folder.path / "state.json").read_text())["best_round"] == 2
    kept = load_file(folder.path / "adapters" / "best" / "adapter_model.safetensors")
    assert kept.keys() == made[2].keys()
    assert all(torch.equal(kept[name], value) for name, value in made[2].items())
    assert not all(torch.equal(kept[name], value) for name, value in made[3].items())


def history(*rounds_: tuple[str, str, str, str]) -> list[dict[str, Any]]:
    """Records: who trained, who failed in it, who was scored, who failed in that."""
    return [
        {
            "train_loss_per_client": dict.fromkeys(trained, 0.5),
            "accuracy_per_client": dict.fromkeys(right, 0.5),
            "failures": {
                "train": {f"client {k}": f"round {n}" for k in untrained},
                "evaluate": {f"client {k}" if k < "7" else f"node {k}": "gone" for k in unscored},
            },
        }
        for n, (trained, untrained, right, unscored) in enumerate(rounds_)
    ]


@pytest.mark.parametrize(
    ("records", "lost"),
    [
        (history(("", "", "01", ""), ("1", "0", "01", "")), {"the training": ["client 0"]}),
        (history(("", "", "1", "0"), ("01", "", "1", "0")), {"the evaluation": ["client 0"]}),
        (history(("", "", "1", "0"), ("1", "0", "1", "0")), {"any": ["client 0"]}),
        (history(("", "", "1", "0"), ("1", "", "1", "0")), {"any": ["client 0"]}),  # never drawn
        (history(("", "", "01", ""), ("1", "", "1", "")), {}),  # not drawn, or not asked
        (history(("", "", "01", ""), ("1", "0", "1", "0"), ("0", "", "0", "1")), {}),
        (history(("", "", "1", "9"), ("1", "", "01", "")), {}),  # node 9 came back as client 0
        (history(("", "", "1", "9"), ("1", "", "1", "9")), {"any": ["node 9"]}),
        (history(("", "", "0", "")), {}),
    ],
)
def test_a_client_is_lost_that_was_asked_and_never_answered_well(
    records: list[dict[str, Any]], lost: dict[str, list[str]]
) -> None:
    found = comparable.lost_clients(records)
    assert {
        what.partition(" of ")[0].removesuffix(" round"): list(w) for what, w in found.items()
    } == lost


def test_lost_clients_with_one_reason_are_said_in_one_line_with_their_last_reason() -> None:
    records = history(("", "", "012345", ""), ("5", "01234", "5", ""), ("5", "01234", "5", ""))
    (line,) = lost_lines(records)
    assert line == (
        "client 0, client 1, client 2 and 2 more took no part in the training of any round: round 2"
    )


def row(table: str, name: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if f"│ {name} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_closing_tables_have_no_change_between_means_of_other_clients() -> None:
    first, last = rounds({"0": 0.5}, {"0": 0.6, "1": 0.9})
    for record in (first, last):
        record["test_questions_per_client"] = dict.fromkeys(record["accuracy_per_client"], 10)
        record["accuracy_by"] = {"all": {"accuracy": record["accuracy"], "questions": 10}}
    said = closing_table(first, last, last, "accuracy")
    assert row(said, "client 0")[4] == "+10.0"
    assert row(said, "mean")[4] == "–"
    assert row(kinds_table(first, last, last, "accuracy"), "all")[4] == "–"
    assert row(closing_table(last, last, last, "accuracy"), "mean")[4] == "+0.0"
    assert row(kinds_table(last, last, last, "accuracy"), "all")[4] == "+0.0"


def test_clients_are_those_of_all_rounds_in_the_order_of_their_numbers() -> None:
    records = rounds({"10": 0.1}, {"2": 0.1, "0": None})
    assert comparable.clients(records) == ["0", "2", "10"]
    trained = [{**records[0], "train_loss_per_client": {"1": 0.5}}]
    assert comparable.clients(trained) == ["1", "10"]
