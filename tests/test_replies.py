"""What the server makes of replies that no client of this app sends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from fednano_flwr import client_app, server_app
from fednano_flwr.config import RunConfig, Upload
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.scoring import (
    ALL,
    KINDS,
    MOST_KINDS,
    OTHER_SUBJECTS,
    TEXT_ONLY,
    WITH_PICTURE,
    tally,
)
from fednano_flwr.rounds.records import partition_of, to_arrays, to_update, to_upload
from fednano_flwr.rounds.replies import COST, check_evaluation, receive_update
from fednano_flwr.runs.summary import kinds_table
from tests.local_grid import LocalGrid
from tests.replies import evaluate_reply, train_reply

Config = Callable[..., dict[str, Any]]
A, B = "text.lora_A.weight", "text.lora_B.weight"
SENT = {A: torch.ones(4, 6), B: torch.zeros(6, 4)}
FISHER = {A: torch.full((4, 6), 0.5), B: torch.full((6, 4), 0.5)}


def npy(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The header of an array, without any of its numbers."""
    file = BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def raw(data: bytes, shape: tuple[int, ...] = (4, 6), stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=shape, stype=stype, data=data)


GOOD = Array(np.ones((4, 6), np.float32))
HUGE = raw(npy((9999999999999,)))
FOUND = {
    "no data": (raw(b""), "cannot be read"),
    "another serialization": (raw(GOOD.data, stype="torch"), "cannot be read"),
    "words": (Array(np.full((4, 6), "abc")), "cannot be read"),
    "more than there is": (HUGE, "cannot be read: ValueError: 128 bytes"),
    "another shape than said": (raw(Array(np.ones((2, 3), np.float32)).data), "have shapes"),
    "whole numbers": (Array(np.ones((4, 6), np.int64)), "is of torch.int64"),
    "unsigned": (Array(np.ones((4, 6), np.uint16)), "is of torch.uint16"),
    "complex": (Array(np.ones((4, 6), np.complex64)), "is of torch.complex64"),
    "double": (Array(np.ones((4, 6))), "is of torch.float64"),
}


@pytest.mark.parametrize("name", FOUND)
def test_an_array_that_is_not_what_was_asked_for_is_refused(name: str) -> None:
    array, says = FOUND[name]
    for key in (f"theta.{A}", f"fisher.{A}"):
        arrays = ArrayRecord({**to_arrays(SENT, FISHER), key: array})
        with pytest.raises(ValueError, match=says):
            receive_update(train_reply(arrays), to_arrays(SENT), "pass")


@pytest.mark.parametrize("key", ["packed.theta.int8", "packed.fisher.log4"])
def test_packed_bytes_that_claim_more_than_there_is_are_refused(key: str) -> None:
    packed = to_upload(SENT, FISHER, SENT, Upload("int8", "log4", False), None)
    arrays = ArrayRecord({**packed, key: raw(npy((9999999999999,), "|u1"))})
    with pytest.raises(ValueError, match=f"{key} cannot be read"):
        receive_update(train_reply(arrays), to_arrays(SENT), "pass")


def test_an_array_or_a_record_too_many_is_refused() -> None:
    extra = ArrayRecord({**to_arrays(SENT), "momentum": GOOD})
    with pytest.raises(ValueError, match="momentum is no part of an update"):
        receive_update(train_reply(extra), to_arrays(SENT))
    with pytest.raises(ValueError, match="nobody asked for"):
        receive_update(train_reply(to_arrays(SENT, FISHER)), to_arrays(SENT))
    reply = train_reply(to_arrays(SENT))
    reply.content["more"] = MetricRecord({"loss": 1.0})
    with pytest.raises(ValueError, match=r"arrays \(ArrayRecord\).*more \(MetricRecord\)"):
        receive_update(reply, to_arrays(SENT))


def test_arrays_in_another_order_are_put_into_the_servers() -> None:
    turned = ArrayRecord(dict(reversed(to_arrays(SENT, FISHER).items())))
    reply = train_reply(turned)
    receive_update(reply, to_arrays(SENT), "pass")
    got = reply.content.array_records["arrays"]
    assert list(got) == list(to_arrays(SENT, FISHER)) != list(turned)
    assert got.object_id == to_arrays(SENT, FISHER).object_id


METRICS = {
    "nan questions": {"num_examples": math.nan},
    "infinite questions": {"num_examples": math.inf},
    "no question": {"num_examples": 0},
    "half a question": {"num_examples": 1.5},
    "nan loss": {"train_loss": math.nan},
    "several losses": {"train_loss": [1.0, 2.0]},
    "infinite seconds": {"seconds": math.inf},
    "seconds beyond adding up": {"seconds": 1e308},
    "negative bytes": {"step_bytes_up": -1},
    "infinite partition": {"partition_id": math.inf},
    "half a partition": {"partition_id": 0.5},
    "an unknown metric": {"accuracy": 0.5},
}


@pytest.mark.parametrize("name", METRICS)
def test_a_train_replys_metrics_are_single_numbers_that_can_be(name: str) -> None:
    key = next(iter(METRICS[name])).replace("_", "-")
    with pytest.raises(ValueError, match="trained on" if name == "no question" else key):
        receive_update(train_reply(to_arrays(SENT), **METRICS[name]), to_arrays(SENT))


@pytest.mark.parametrize("key", [*COST, "num-examples"])
def test_a_missing_metric_is_named(key: str) -> None:
    trained, scored = train_reply(to_arrays(SENT)), evaluate_reply()
    for reply in (trained, scored):
        del reply.content.metric_records["metrics"][key]
    with pytest.raises(ValueError, match=rf"missing are \['{key}'\]"):
        receive_update(trained, to_arrays(SENT))
    with pytest.raises(ValueError, match=rf"missing are \['{key}'\]"):
        check_evaluation(scored)


TALLIES = {
    "a list": [],
    "no pairs": {"all": 1.5},
    "three numbers": {"all": [1.5, 3, 4]},
    "words": {"all": ["1.5", "3"]},
    "true": {"all": [1.5, 3], "text only": [True, 3]},
    "half a question": {"all": [1.5, 3], "text only": [0, 0.5]},
    "below 0": {"all": [1.5, 3], "text only": [-0.1, 3]},
    "no number": {"all": [1.5, 3], "text only": [math.nan, 3]},
    "more than 1 a question": {"all": [1.5, 3], "text only": [3.01, 3]},
    "nothing asked": {"all": [1.5, 3], "text only": [0, 0]},
    "others than the metrics": {"all": [1, 3]},
    "none": {},
    "half a character": {"all": [1.5, 3], "\ud800": [1.5, 3]},
}


@pytest.mark.parametrize("kinds", [{"k" * 201: [0, 1]}, {str(i): [0, 1] for i in range(2001)}])
def test_a_tally_of_endless_kinds_is_refused(kinds: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="at most 2000, each named by at most 200"):
        check_evaluation(evaluate_reply(tally={"all": [1.5, 3], **kinds}))


@pytest.mark.parametrize("name", TALLIES)
def test_a_tally_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="tally"):
        check_evaluation(evaluate_reply(tally=TALLIES[name]))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"score": 4.0}, "score of 4.0 in 3"),
        ({"score": [2]}, "score is a list"),
        ({"test_loss": math.inf}, "test-loss = inf"),
        ({"test_loss": -0.1}, "test-loss = -0.1"),
        ({"test_tokens": 2}, "test-tokens = 2"),
        ({"test_tokens": 8.5}, "test-tokens = 8.5"),
        ({"num_examples": math.nan}, "num-examples = nan"),
        ({"train_examples": -1}, "train-examples = -1"),
    ],
)
def test_an_evaluate_replys_metrics_are_single_numbers_that_can_be(
    changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        check_evaluation(evaluate_reply(**changed))


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"tally": "{"},
        {"skipped": "[]"},
        {"unreadable": '{"a": 1}'},
        {"unreadable": '{"a": [1]}'},
        {"tally": "[" * 10**5},
    ],
)
def test_notes_that_cannot_be_read_are_refused(notes: dict[str, str]) -> None:
    reply = evaluate_reply()
    if notes:
        reply.content.config_records["notes"].update(notes)
    else:
        reply.content["notes"] = ConfigRecord({})
    with pytest.raises(ValueError, match=f"note {next(iter(notes))}" if notes else "missing are"):
        check_evaluation(reply)


def test_a_client_without_test_questions_is_a_good_one() -> None:
    check_evaluation(
        evaluate_reply(tally={}, score=0.0, num_examples=0, test_loss=0.0, test_tokens=0)
    )
    check_evaluation(evaluate_reply())


def test_packed_fisher_values_have_the_shapes_of_their_own_adapters() -> None:
    narrow = {A: torch.ones(2, 6), B: torch.zeros(6, 2)}
    fisher = {A: torch.full((2, 6), 0.5), B: torch.full((6, 2), 0.25)}
    arrays = to_upload(narrow, fisher, narrow, Upload("float32", "log4", False), None)
    reply = train_reply(arrays)
    receive_update(reply, to_arrays(SENT), "running", lower_ranks=True)
    got = to_update(reply).fisher
    assert got is not None
    for name, value in fisher.items():
        assert torch.allclose(got[name], value, rtol=1e-6), name


def lose_data(reply: Message) -> None:
    arrays = reply.content.array_records["arrays"]
    arrays[next(iter(arrays))].data = b""


def change(record: str, key: str, value: Any) -> Callable[[Message], None]:
    def tamper(reply: Message) -> None:
        if value is None:
            del reply.content[record][key]  # type: ignore[union-attr]
        else:
            reply.content[record][key] = value  # type: ignore[union-attr,assignment]

    return tamper


BROKEN: list[tuple[str, Callable[[Message], None], str]] = [
    ("train", lose_data, "cannot be read"),
    ("train", change("metrics", "partition-id", math.inf), "partition-id = inf"),
    ("train", change("metrics", "extra", 1.0), "extra"),
    ("train", change("arrays", "extra", GOOD), "extra is no part"),
    ("train", change("metrics", "train-loss", None), "train-loss"),
    ("evaluate", change("metrics", "seconds", None), "seconds"),
    ("evaluate", change("notes", "tally", None), "tally"),
    ("evaluate", change("metrics", "score", [1, 2]), "score is a list"),
]
"""What is done to a reply in the first round, in the second, ...: its kind, what, what is said."""


class Breaking(LocalGrid):
    """Partition 1 sends one broken reply in each round but round 0."""

    def answer(self, message: Message) -> list[Message]:
        replies = super().answer(message)
        server_round = int(str(message.content.config_records["config"]["server-round"]))
        if server_round and self.nodes[message.metadata.dst_node_id] == 1:
            kind, tamper, _ = BROKEN[server_round - 1]
            if message.metadata.message_type == kind:
                tamper(replies[0])
        return replies


@pytest.mark.parametrize("strategy", ["fedavg", pytest.param("FedMedian", marks=pytest.mark.slow)])
def test_a_broken_reply_is_refused_by_name_and_the_round_goes_on(
    run_config: Config, strategy: str
) -> None:
    flat = run_config(strategy__name=strategy, num_server_rounds=len(BROKEN), local_epochs=1)
    grid = Breaking(client_app.app, flat, clients=3)
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    for record, (kind, _, says) in zip(folder.rounds[1:], BROKEN, strict=True):
        broken, whole = ("train", "evaluate") if kind == "train" else ("evaluate", "train")
        assert list(record["failures"][broken]) == ["client 1"] and not record["failures"][whole]
        assert says in record["failures"][broken]["client 1"]
        good = "train_loss_per_client" if kind == "train" else "accuracy_per_client"
        assert sorted(record[good]) == ["0", "2"]
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == folder.rounds


def test_an_error_that_no_check_foresees_is_one_clients_own(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = server_app.check_evaluation

    def surprised(reply: Message) -> None:
        check(reply)
        if partition_of(reply) == 1:
            raise MemoryError("no room for this")

    monkeypatch.setattr(server_app, "check_evaluation", surprised)
    flat = run_config(num_server_rounds=0)
    folder = server_app.federate(LocalGrid(client_app.app, flat, 3), 1, RunConfig.parse(flat))
    said = folder.rounds[0]["failures"]["evaluate"]
    assert said == {"client 1": "reply refused: MemoryError: no room for this"}


def test_a_subject_in_brackets_is_printed_as_it_is() -> None:
    kinds = {"[/bold]": {"accuracy": 0.5, "questions": 2}}
    record = {"round": 1, "accuracy_by": kinds, "accuracy_per_client": {}}
    assert "[/bold]" in kinds_table(record, record, record, "accuracy")


@pytest.mark.parametrize("subject", [*KINDS, "s" * 300])
def test_a_subject_of_any_name_is_counted_and_changes_no_other_row(subject: str) -> None:
    samples = [Sample(str(i), "q", "g", subject, ("x", "y"), answer=0) for i in range(3)]
    counts = tally(samples, [True, True, False])
    assert counts[ALL] == counts[TEXT_ONLY] == [2, 3] and WITH_PICTURE not in counts
    assert len(counts) == 3
    check_evaluation(evaluate_reply(counts, score=2.0))


def test_more_subjects_than_a_table_takes_are_counted_together() -> None:
    samples = [Sample(str(i), "q", "g", f"subject {i}", ("x",), answer=0) for i in range(2500)]
    counts = tally(samples, [True] * 2500)
    assert sum(entry[1] for entry in counts.values()) == 3 * 2500
    assert len(counts) <= MOST_KINDS and counts[OTHER_SUBJECTS][0] > 0
