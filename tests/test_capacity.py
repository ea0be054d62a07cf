"""The capacity calculator: by hand, and against counted messages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

from benchmarks.capacity.model import (
    ClientSide,
    Host,
    Merge,
    Phase,
    Setup,
    Shard,
    SuperLink,
    Workload,
    carried,
    feature_bytes,
    idle_requests,
    round_cost,
    training_traffic,
)
from benchmarks.capacity.script import main
from benchmarks.capacity.sizes import (
    Model,
    Question,
    features_traffic,
    score_traffic,
    step_traffic,
    training_messages,
)
from benchmarks.step_traffic import ALTERNATING, LEAST, LOW, PLAIN
from fednano_flwr.adapters.site import adapter_state, build_adapters
from fednano_flwr.config import Adapter
from fednano_flwr.rounds.records import record_bytes, to_arrays

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# 10 questions of 10 tokens, trained on in two passes: 200 tokens; 5 scored: 50 tokens.
WORK = Workload(Question(4, 6), Shard.of(10, 4), Shard.of(5, 4), gradient_passes=2, fisher=True)
MODEL = Model(hidden_size=8, rank=2, vocabulary=100, wire_bytes=4)
SETUP = Setup("lowrank", MODEL, WORK, Host(100, 200))


def phase(setup: Setup, name: str, clients: float) -> Phase:
    phases = round_cost(setup, clients, clients).phases
    return next(phase for phase in phases if phase.name == name)


@pytest.mark.parametrize(("vocabulary", "expected"), [(128, 1.0), (256, 1.5), (32768, 2.4961)])
def test_token_ids_take_a_byte_for_each_seven_bits(vocabulary: int, expected: float) -> None:
    assert Model(8, 2, vocabulary, 4).token_id_bytes == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [PLAIN, LOW, ALTERNATING, LEAST])
def test_bytes_of_a_step_are_those_that_were_counted_at_llavas_width(kind: str) -> None:
    recorded = json.loads((RESULTS / "step_traffic.json").read_text())
    setting, counted = recorded["setting"], recorded["bytes_of_a_step"][kind]
    exchange, in_turns = kind.partition(",")[0], kind in (ALTERNATING, LEAST)
    read_size = setting["connector_input"] if kind == LEAST else 0
    sizes = setting["hidden_size"], setting["rank"]
    model = Model(*sizes, 1000, 2, in_turns=in_turns, read_size=read_size)
    question = Question(setting["image_tokens"], setting["text_tokens"])
    later = step_traffic(exchange, model, question, setting["batch"])
    first = later + features_traffic(exchange, model, question, setting["batch"])
    assert later.both == pytest.approx(counted["later"], rel=1e-3)
    # The first of alternating rounds trains B, and more of that is sent than the mean.
    assert first.both == pytest.approx(counted["first"], rel=0.04 if in_turns else 1e-3)


def test_the_numbers_of_a_step_are_those_of_the_formulas() -> None:
    big = Model(hidden_size=1000, rank=10, vocabulary=100, wire_bytes=2)
    plain = step_traffic("embeddings", big, Question(300, 200), 4)
    assert plain.up == pytest.approx(4 * 500 * 1000 * 2, rel=1e-3)  # N · d
    assert plain.down == pytest.approx(4 * 500 * 1000 * 2, rel=1e-3)
    low = step_traffic("lowrank", big, Question(300, 200), 4)
    assert low.down == pytest.approx(2 * (4 * 500 * 10 + 2 * 1000 * 10), rel=5e-3)  # N·r + 2·d·r
    once = features_traffic("lowrank", big, Question(300, 200), 4).up
    assert once == pytest.approx(4 * 300 * 1000 * 2, rel=1e-3)


def test_a_batch_without_pictures_sends_one_site() -> None:
    big = Model(hidden_size=1000, rank=10, vocabulary=100, wire_bytes=2)
    text = step_traffic("lowrank", big, Question(300, 200, pictured=0), 1)
    assert text.down == pytest.approx(2 * (200 * 10 + 1000 * 10), rel=5e-3)
    assert score_traffic("lowrank", big, Question(300, 200, pictured=0), 1).down < 100


def test_features_are_sent_once_a_question_and_not_once_a_pass() -> None:
    later, first = (training_traffic(SETUP, first) for first in (False, True))
    extra = features_traffic("lowrank", MODEL, WORK.question, WORK.train.batch)
    assert first.up - later.up == pytest.approx(3 * extra.up)


@pytest.mark.parametrize("fisher", [False, True])
def test_round_messages_are_as_large_as_flower_counts_them(fisher: bool) -> None:
    theta = adapter_state(build_adapters(128, Adapter(16, 32.0, 0.0, "image,text"), seed=0))
    down = record_bytes(RecordDict({"arrays": to_arrays(theta)}))
    metrics = MetricRecord({f"metric-{i}": 1.0 for i in range(15)})
    arrays = to_arrays(theta, theta if fisher else None)
    up = record_bytes(RecordDict({"arrays": arrays, "metrics": metrics}))
    got = training_messages(Model(128, 16, 223, 4), fisher)
    assert got.down == pytest.approx(down, rel=0.01)
    assert got.up == pytest.approx(up, rel=0.01)


def test_the_host_takes_the_tokens_of_all_clients_divided_by_its_replicas() -> None:
    one = phase(SETUP, "training", 50)
    assert one.parts["host compute"] == pytest.approx(50 * 200 / 100)
    assert one.bottleneck == "host compute" and one.seconds == one.parts["host compute"]
    eight = replace(SETUP, host=Host(100, 200, replicas=8))
    assert phase(eight, "training", 50).parts["host compute"] == pytest.approx(100 / 8)
    assert phase(SETUP, "evaluation", 50).parts["host compute"] == pytest.approx(50 * 50 / 200)


def test_replicas_of_a_machine_share_its_link() -> None:
    host = Host(100, 200, link_bytes_per_second=1000, replicas=16, replicas_a_machine=8)
    got = phase(replace(SETUP, host=host), "training", 50).parts["host downlink"]
    assert got == pytest.approx(50 * training_traffic(SETUP, False).up / 2000)


def test_a_phase_lasts_as_long_as_a_client_that_has_everything_to_itself() -> None:
    client = ClientSide(message_seconds=1, question_seconds=0.5, round_trip_seconds=0.1)
    slow = replace(SETUP, client=client, superlink=SuperLink(message_seconds=6))
    alone = 1 + 2 * 10 * 0.5 + 6 * 0.1 + 6 + 2  # process, questions, calls, message, host
    got = phase(slow, "training", 1)
    assert got.seconds == pytest.approx(alone)
    assert got.bottleneck == "a client's own time, most of it client compute"
    assert phase(slow, "training", 9).seconds == pytest.approx(alone)  # at the same time
    assert phase(slow, "training", 11).bottleneck == "host compute"


def test_simulated_clients_take_turns() -> None:
    client = ClientSide(message_seconds=1, at_once=2)
    got = phase(replace(SETUP, client=client), "evaluation", 10)
    assert got.seconds == pytest.approx(10 / 2 * (1 + 50 / 200))


def test_a_simulator_looks_at_each_message_for_each_client() -> None:
    link = SuperLink(look_seconds=2e-5)
    assert link.looking(100) == pytest.approx(0.1 / 0.2)  # 0.1 s of looking, then a pause of 0.1 s
    simulated = replace(SETUP, client=ClientSide(message_seconds=1, at_once=2), superlink=link)
    took = phase(simulated, "evaluation", 100).seconds
    assert took == pytest.approx(100 / 2 * 1.25 / (1 - 0.5 / 2))  # half of one of two cores


def test_a_slow_uplink_is_named() -> None:
    slow = replace(SETUP, client=ClientSide(up_bytes_per_second=10))
    got = phase(slow, "training", 1)
    messages = training_messages(MODEL, True).up
    sent = training_traffic(SETUP, False).up + messages
    assert got.seconds == pytest.approx(sent / 10 + 2)
    assert got.bottleneck.endswith("client uplink")


def test_a_superlink_takes_two_messages_a_client() -> None:
    crowded = replace(SETUP, superlink=SuperLink(messages_per_second=4))
    assert phase(crowded, "evaluation", 80).parts["SuperLink messages"] == 40


def test_merging_grows_with_the_clients_and_their_numbers() -> None:
    merged = replace(SETUP, merge=Merge(seconds_a_number=0.01, bytes_a_number=3))
    cost = round_cost(merged, trained=50, evaluated=0)
    assert cost.merge_bytes == 50 * 64 * 3
    assert cost.phases[1].seconds == pytest.approx(50 * 64 * 0.01)
    assert cost.phases[2].seconds == 0  # nobody is evaluated
    assert cost.seconds == pytest.approx(sum(p.seconds for p in cost.phases))


def test_a_host_is_saturated_when_as_many_work_as_it_has_time_for() -> None:
    client = replace(SETUP, client=ClientSide(message_seconds=9))
    found = carried(client)  # a client: 2.25 s at the host of 2 · 9 + 2.25 s
    assert found.at_once == pytest.approx((18 + 2.25) / 2.25)
    assert found.an_hour == pytest.approx(3600 / 2.25)
    assert found.limit == "host compute"


def test_waiting_supernodes_ask_though_nobody_samples_them() -> None:
    assert idle_requests(30) == 11


def test_the_host_keeps_the_features_of_every_picture_once() -> None:
    assert feature_bytes(SETUP) == 15 * 4 * 8 * 4  # questions · image tokens · d · bytes
    assert feature_bytes(replace(SETUP, exchange="embeddings")) == 0


def test_the_tables_of_the_document_are_those_that_the_calculator_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "capacity.json"
    shutil.copy(RESULTS / "capacity.json", result)
    before = torch.get_num_threads()
    main(["--json", str(result)])
    torch.set_num_threads(before)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    written = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 50
    assert [row for row in rows if row not in written] == []
    recorded = json.loads((RESULTS / "capacity.json").read_text(encoding="utf-8"))
    record = json.loads(result.read_text(encoding="utf-8"))
    for kept in ("measured", "check"):  # what was measured stays as it was
        assert record[kept] == recorded[kept]
    assert record["environment"]["packages"]["torch"] == torch.__version__
