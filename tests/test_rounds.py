"""Whole runs through both apps, in one process, with a real gRPC host between them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from fednano_flwr import client_app, server_app
from fednano_flwr.base.console import ALL_DONE, human_bytes
from fednano_flwr.cli.partition import partition_to_folder
from fednano_flwr.cli.split import split
from fednano_flwr.config import RunConfig
from fednano_flwr.edge import process_cache
from fednano_flwr.exchange.wire import fednano_pb2 as pb
from fednano_flwr.exchange.wire.dispatch import Dispatcher
from fednano_flwr.exchange.wire.server import Servicer
from fednano_flwr.in_process import run_in_process
from fednano_flwr.rounds import progress, snapshot
from fednano_flwr.rounds.federation import LostClientsError, TooFewClientsError
from fednano_flwr.rounds.snapshot import Snapshot
from fednano_flwr.runs.comparable import lost_clients
from fednano_flwr.runs.folder import RunFolder
from tests import tiny
from tests.local_grid import LocalGrid

Config = Callable[..., dict[str, Any]]


def run(flat: dict[str, Any], clients: int = 3, **grid: Any) -> RunFolder:
    local = LocalGrid(client_app.app, flat, clients, **grid)
    return server_app.federate(local, 1, RunConfig.parse(flat))


def adapters(folder: RunFolder, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder.path / "adapters" / which / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("fednano", marks=pytest.mark.slow),
        "fednano-ef",
        pytest.param("fedavg", marks=pytest.mark.slow),
        "fedavg-exact",
        "fisher-product",
        pytest.param("fedprox", marks=pytest.mark.slow),
        pytest.param("feddpa-f", marks=pytest.mark.slow),
        "centralized",
        "FedAdam",
        pytest.param("FedMedian", marks=pytest.mark.slow),
    ],
)
def test_a_run_trains_merges_and_writes_its_folder(run_config: Config, strategy: str) -> None:
    folder = run(run_config(strategy__name=strategy))
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert [record["round"] for record in rounds] == [0, 1, 2]
    assert rounds[0]["train_loss"] is None
    assert 0 < rounds[2]["train_loss"] < rounds[1]["train_loss"]
    assert set(rounds[2]["accuracy_per_client"]) == {"0", "1", "2"}
    assert sum(rounds[2]["test_questions_per_client"].values()) == 24
    assert rounds[1]["step_bytes_up"] > rounds[0]["step_bytes_up"] > 0
    assert rounds[2]["round_bytes_down"] == rounds[1]["round_bytes_down"]
    now, peak = (rounds[2][key]["server_process"] for key in ("memory_mb", "peak_memory_mb"))
    assert 0.2 * peak < now < 1.02 * peak
    by = rounds[2]["accuracy_by"]
    assert list(by) == ["all", "with picture (IMG)", "text only", "natural science"]
    assert [by[kind]["questions"] for kind in by] == [24, 12, 12, 24]
    pooled = sum(
        accuracy * rounds[2]["test_questions_per_client"][client]
        for client, accuracy in rounds[2]["accuracy_per_client"].items()
    )
    assert by["all"]["accuracy"] == pytest.approx(pooled / 24)
    moved = adapters(folder)["base_model.model.text_adapter.lora_B.weight"]
    assert moved.abs().max() > 0
    assert json.loads((folder.path / "state.json").read_text())["round"] == 2


def test_the_same_seed_gives_the_same_adapters_whatever_the_order_of_replies(
    run_config: Config,
) -> None:
    first = adapters(run(run_config(run__name="a"), order=1))
    second = adapters(run(run_config(run__name="b"), order=2))
    other = adapters(run(run_config(run__name="c", seed=1), order=1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_later_run_encodes_no_picture_and_gets_the_same_adapters(run_config: Config) -> None:
    first = run(run_config(run__name="first"))
    process_cache.clear()
    second = run(run_config(run__name="second"))
    assert sum(record["features"]["encoded"] for record in first.rounds) == 42
    assert sum(record["features"]["encoded"] for record in second.rounds) == 0
    assert sum(record["features"]["from_disk"] for record in second.rounds) == 42
    for key, value in adapters(first).items():
        assert torch.equal(adapters(second)[key], value), key


def test_the_closing_line_adds_up_both_kinds_of_traffic(
    run_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = run(run_config(num_server_rounds=1)).rounds
    said = next(line for line in capsys.readouterr().out.splitlines() if "traffic of all" in line)
    for kind in ("round", "step"):
        up = human_bytes(sum(record[f"{kind}_bytes_up"] for record in rounds))
        down = human_bytes(sum(record[f"{kind}_bytes_down"] for record in rounds))
        assert f"↑{up} ↓{down}" in said


def test_what_crosses_changes_no_bit_of_the_adapters(run_config: Config) -> None:
    plain = run(run_config(run__name="plain", exchange__kind="embeddings"))
    low = run(run_config(run__name="low", exchange__kind="lowrank"))
    own = run(run_config(run__name="own", exchange__labels_at="client"))
    for other in (low, own):
        assert not other.rounds[-1]["failures"]["train"]
        for key, value in adapters(plain).items():
            assert torch.equal(adapters(other)[key], value), key
    sent = [[r["step_bytes_up"] for r in folder.rounds] for folder in (plain, low)]
    assert sent[1][2] < sent[0][2] / 2  # rank 4 of 48, and features were sent in round 0


@pytest.mark.slow
def test_a_host_that_batches_across_clients_gives_nearly_the_same_adapters(
    run_config: Config,
) -> None:
    expected = adapters(run(run_config(run__name="one")))
    batched = adapters(run(run_config(run__name="batched", llm__batch_tokens=200)))
    assert any(not torch.equal(batched[key], expected[key]) for key in batched)
    for key, value in batched.items():
        assert (value - expected[key]).abs().max() < 1e-3 * expected[key].abs().max(), key


def test_a_shard_an_edge_bundle_and_a_shards_own_rows_change_nothing(
    run_config: Config, tiny_model: Path, tmp_path: Path
) -> None:
    flat = run_config()
    config = RunConfig.parse(flat)
    expected = run(flat)
    partition_to_folder(config, 3, tmp_path / "shards", map_only=False)
    rows = split(str(tiny_model), tmp_path / "bundle", tmp_path / "shards" / "client-1", None)
    assert "of 64 tokens" in rows and "64 of 64" not in rows
    split(str(tiny_model), tmp_path / "full", None, None)

    def node_config(partition: int) -> dict[str, str]:
        bundle = tmp_path / ("bundle" if partition == 1 else "full")
        shard = tmp_path / "shards" / f"client-{partition}"
        return {"data-path": str(shard), "edge-path": str(bundle)}

    there = run_config(
        run__name="there", dataset__path=str(tmp_path / "nowhere"), edge__vocabulary="shard"
    )
    folder = run(there, node_config=node_config)
    assert not folder.rounds[-1]["failures"]["train"]
    for key, value in adapters(expected).items():
        assert torch.equal(adapters(folder)[key], value), key


def test_clients_with_files_of_their_own_train_on_these_and_on_nothing_else(
    run_config: Config, tmp_path: Path
) -> None:
    own = {"dataset__name": "table", "dataset__test_fraction": 0.25}
    there = run_config(dataset__path=str(tmp_path / "nowhere"), **own)
    for client in range(3):
        rows = [f"w2{n % 7}?,\"['w30', 'w31']\",{n % 2}" for n in range(8 + 4 * client)]
        (tmp_path / f"{client}.csv").write_text("\n".join(["question,choices,answer", *rows]))

    def node_config(partition: int) -> dict[str, Any]:
        place = {"partition-id": partition, "num-partitions": 3}
        return {"data-path": str(tmp_path / f"{partition}.csv"), **place}

    folder = run(there, node_config=node_config)
    last = folder.rounds[-1]
    assert last["train_questions_per_client"] == {"0": 6, "1": 9, "2": 12}
    assert last["test_questions_per_client"] == {"0": 2, "1": 3, "2": 4}
    assert not last["failures"]["train"] and not last["failures"]["evaluate"]


def test_a_bundle_of_another_model_is_refused_at_the_first_message(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=5)
    split(str(other), tmp_path / "bundle", None, None)
    with pytest.raises(TooFewClientsError):
        run(run_config(edge__bundle=str(tmp_path / "bundle")))
    said = capsys.readouterr().out
    assert "do not belong together" in said and str(other) in said


def test_free_answers_need_the_whole_vocabulary(
    run_config: Config, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iconqa = {"dataset__name": "iconqa", "dataset__path": str(sample_data / "iconqa")}
    flat = run_config(edge__vocabulary="shard", dataset__partitioner="iid", **iconqa)
    with pytest.raises(TooFewClientsError):
        run(flat)
    assert 'use edge.vocabulary = "full"' in capsys.readouterr().out
    tasks = "choose_txt,choose_img"
    assert run({**flat, "dataset.tasks": tasks, "num-server-rounds": 0}).rounds


def test_a_fraction_of_the_clients_trains_and_the_seed_says_which(run_config: Config) -> None:
    chosen = []
    for name, order in (("a", 1), ("b", 2)):
        folder = run(run_config(fraction_train=0.5, run__name=name), clients=4, order=order)
        chosen.append([sorted(r["train_loss_per_client"]) for r in folder.rounds])
    assert chosen[0] == chosen[1]
    assert [len(clients) for clients in chosen[0]] == [0, 2, 2]


def test_an_evaluation_by_a_fraction_needs_no_more_replies_than_it_asks_for(
    run_config: Config,
) -> None:
    folder = run(run_config(fraction_evaluate=0.34, min_replies=3, local_epochs=1))
    assert [len(record["accuracy_per_client"]) for record in folder.rounds] == [3, 1, 3]


def test_of_clients_that_are_left_so_many_train_as_have_to_reply(run_config: Config) -> None:
    flat = run_config(fraction_train=0.5, min_replies=2, num_server_rounds=1, local_epochs=1)
    grid = LocalGrid(client_app.app, flat, 4)
    healthy = grid.get_node_ids
    answered: list[int] = []

    def get_node_ids() -> Iterable[int]:
        left = {node for node, partition in grid.nodes.items() if partition < 2}
        return [node for node in healthy() if len(answered) < 4 or node in left]

    replying = grid.answer
    grid.get_node_ids = get_node_ids  # type: ignore[method-assign]
    grid.answer = lambda message: answered.append(1) or replying(message)  # type: ignore
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "1"]


@pytest.mark.parametrize(
    "strategy", ["fedavg", pytest.param("centralized", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("late", ["failed round 0", "came after round 0", "silent at first"])
def test_a_client_that_was_not_there_in_round_0_trains_as_well(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, late: str, strategy: str
) -> None:
    monkeypatch.setattr("fednano_flwr.rounds.federation.PARTITION_SECONDS", 1.0)
    flat = run_config(
        fraction_train=0.99,
        fraction_evaluate=0.34,
        num_server_rounds=3,
        local_epochs=1,
        round_timeout=1.0,
        strategy__name=strategy,
    )
    grid = LocalGrid(client_app.app, flat, 3, gone=[0] if late == "silent at first" else [])
    newcomer = next(node for node, partition in grid.nodes.items() if partition == 0)
    if late == "came after round 0":
        del grid.nodes[newcomer]
    healthy = client_app.Client.evaluate

    def evaluate(self: client_app.Client, theta: Any, llm: Any, number: int, work: Any) -> Any:
        if self.partition == 1:  # everyone's round 0 is about over
            grid.nodes[newcomer] = 0
        if self.partition == 0 and number == 0:
            raise RuntimeError("the disk is full")
        return healthy(self, theta, llm, number, work)

    monkeypatch.setattr(client_app.Client, "evaluate", evaluate)
    if late == "silent at first":
        replying = grid.answer

        def answer(message: Any) -> Any:
            if message.metadata.message_type == "train":
                grid._gone.clear()
            return replying(message)

        grid.answer = answer  # type: ignore[method-assign]
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    trained = [sorted(record["train_loss_per_client"]) for record in folder.rounds]
    everyone = ["0"] if strategy == "centralized" else ["0", "1", "2"]
    begin = [["1"] if strategy == "centralized" else ["1", "2"]] if "silent" in late else []
    assert trained[1:] == (begin + [everyone] * 3)[:3]
    assert "0" in folder.rounds[3]["accuracy_per_client"]


def test_asking_who_is_there_does_not_end_what_is_said_of_progress(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = run_config(fraction_evaluate=0.34, round_timeout=1.0, num_server_rounds=1)
    grid = LocalGrid(client_app.app, flat, 3, gone=[2])
    server_app.federate(grid, 1, RunConfig.parse(flat), tmp_path / "progress.json")
    said = capsys.readouterr().out
    assert "who is there: node" in said and "no reply within 1 s" in said
    assert "progress is no longer shown" not in said


def test_a_client_that_raises_does_not_stop_the_round(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = client_app.Client.train

    def train(self: client_app.Client, *args: Any) -> Any:
        if self.partition == 1:
            raise RuntimeError("the disk is full")
        return healthy(self, *args)

    monkeypatch.setattr(client_app.Client, "train", train)
    folder = run(run_config())
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    assert "the disk is full" in folder.rounds[1]["failures"]["train"]["client 1"]
    assert "client 1 failed: RuntimeError: the disk is full" in capsys.readouterr().out


def failing(monkeypatch: pytest.MonkeyPatch, work: str, *partitions: int) -> None:
    """These clients cannot do this work in any round."""
    healthy = getattr(client_app.Client, work)

    def fails(self: client_app.Client, *args: Any) -> Any:
        if self.partition in partitions:
            raise RuntimeError(f"the disk of client {self.partition} is full")
        return healthy(self, *args)

    monkeypatch.setattr(client_app.Client, work, fails)


@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_a_run_that_a_client_took_no_part_in_is_complete_and_does_not_end_well(
    run_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    work: str,
) -> None:
    failing(monkeypatch, work, 1)
    config = RunConfig.parse(run_config(resume="auto"))
    what = {"train": "training", "evaluate": "evaluation"}[work]
    for _ in range(2):  # the second one has nothing left to do
        with pytest.raises(LostClientsError, match=f"client 1 .* {what} .*disk .* is full") as lost:
            run_in_process(config, 3)
        assert str(lost.value).startswith(ALL_DONE)
        said = capsys.readouterr().out
        closing = said[said.index("Accuracy against the frozen model") :]
        assert f"client 1 took no part in the {what} of any round: " in closing
    folder = RunFolder(config)
    folder.close()
    assert folder.finished and (folder.path / "adapters" / "last").is_dir()


def test_the_server_app_says_that_its_run_did_not_end_well(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "train", 2)
    flat = run_config(num_server_rounds=1)
    context = Context(1, 1, {}, RecordDict(), flat)
    with pytest.raises(LostClientsError, match="client 2"):
        server_app.main(LocalGrid(client_app.app, flat, 3), context)


def test_a_client_that_never_could_do_anything_is_known_by_its_partition(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "train", 2)
    failing(monkeypatch, "evaluate", 2)
    folder = run(run_config())
    assert [list(record["failures"]["evaluate"]) for record in folder.rounds] == [["client 2"]] * 3
    assert list(folder.rounds[1]["failures"]["train"]) == ["client 2"]
    assert [list(lost) for lost in lost_clients(folder.rounds).values()] == [["client 2"]]


def test_clients_that_are_not_drawn_are_not_lost(run_config: Config) -> None:
    flat = run_config(fraction_train=0.4, num_server_rounds=1)
    folder = run_in_process(RunConfig.parse(flat), 3)
    assert len(folder.rounds[1]["train_loss_per_client"]) == 1


def test_a_reason_that_many_clients_have_is_said_once_with_how_many(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "evaluate", *range(6))
    with pytest.raises(TooFewClientsError) as error:
        run(run_config(dataset__min_partition_size=1), clients=6)
    said = capsys.readouterr().out
    assert str(error.value).count("is full") == said.count("is full") == 1
    assert re.search(
        r"6 of 6 clients \(client \d, client \d, client \d and 3 more\): ", str(error.value)
    )
    assert re.search(r"failed as client \d did \(6 of 6 clients\)", said)


def test_a_client_that_never_answers_is_given_up_after_the_timeout(run_config: Config) -> None:
    folder = run(run_config(round_timeout=1.0), gone=[2])
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "1"]
    assert "no reply, and no step for 1 s" in str(folder.rounds[1]["failures"])


def test_too_few_replies_end_the_run_with_their_reasons(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(self: client_app.Client, *args: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(client_app.Client, "train", train)
    with pytest.raises(TooFewClientsError, match=r"0 of 3 clients.*out of memory"):
        run(run_config(min_replies=2))
    rounds = (Path(run_config()["run.dir"]) / "test" / "metrics.jsonl").read_text().splitlines()
    assert len(rounds) == 1  # round 0 is kept


def test_an_update_that_is_not_finite_is_refused_and_the_round_goes_on(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = client_app.Client.train

    def train(self: client_app.Client, *args: Any) -> Any:
        result = healthy(self, *args)
        if self.partition == 0:
            next(iter(result.theta.values()))[0] = float("nan")
        return result

    monkeypatch.setattr(client_app.Client, "train", train)
    folder = run(run_config())
    assert "not a number" in folder.rounds[1]["failures"]["train"]["client 0"]
    assert all(torch.isfinite(value).all() for value in adapters(folder).values())


def test_a_run_does_not_overwrite_an_earlier_one(run_config: Config) -> None:
    run(run_config(num_server_rounds=0))
    with pytest.raises(ValueError, match=r"run\.name"):
        run(run_config(num_server_rounds=0))


def test_a_client_that_loses_the_host_in_the_middle_does_not_stop_the_round(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = run_config(batch_size=2)
    grid = LocalGrid(client_app.app, flat, clients=3)
    unlucky = next(node for node, partition in grid.nodes.items() if partition == 1)
    answered = 0
    healthy = Servicer.session

    def session(self: Servicer, calls: Any, context: grpc.ServicerContext) -> Any:
        nonlocal answered
        for call, answer in both(calls, lambda own: healthy(self, own, context)):
            parsed = pb.Call.FromString(call)
            header = getattr(parsed, str(parsed.WhichOneof("what"))).header
            if header.node == unlucky and header.round == 1:
                answered += 1
                if answered > 2:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
            yield answer

    monkeypatch.setattr(Servicer, "session", session)
    monkeypatch.setattr("fednano_flwr.exchange.wire.connection.RETRY_SECONDS", 0.5)
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    assert answered > 2
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "2"]
    assert "HostUnreachableError" in folder.rounds[1]["failures"]["train"]["client 1"]
    assert sorted(folder.rounds[2]["train_loss_per_client"]) == ["0", "1", "2"]


def both(calls: Iterable[Any], answer: Callable[[Iterator[Any]], Iterator[Any]]) -> Any:
    """Each call of a session with its answer."""
    for call in calls:
        yield call, next(answer(iter([call])))


def test_a_connection_lost_for_a_moment_changes_nothing(
    run_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = adapters(run(run_config(run__name="calm")))
    healthy, count = Servicer.session, 0

    def session(self: Servicer, calls: Any, context: grpc.ServicerContext) -> Any:
        nonlocal count
        for _, answer in both(calls, lambda own: healthy(self, own, context)):
            count += 1
            if count % 3 == 1:  # computed, but the answer is lost on the way
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
            yield answer

    monkeypatch.setattr(Servicer, "session", session)
    shaken = run(run_config(run__name="shaken"))
    assert shaken.rounds[1]["step_retries"] > 0
    assert all(torch.equal(value, expected[key]) for key, value in adapters(shaken).items())


def test_two_nodes_with_one_partition_are_told_apart(run_config: Config) -> None:
    flat = run_config(num_server_rounds=1)
    grid = LocalGrid(client_app.app, flat, clients=3)
    twin = next(node for node, partition in grid.nodes.items() if partition == 2)
    grid.nodes[twin] = 1
    folder = server_app.federate(grid, 1, RunConfig.parse(flat))
    assert "held by another" in str(folder.rounds[0]["failures"]["evaluate"])
    assert sorted(folder.rounds[1]["train_loss_per_client"]) == ["0", "1"]


def test_a_client_without_test_questions_is_left_out_of_the_mean(
    run_config: Config, tmp_path: Path
) -> None:
    data = tiny.write_scienceqa(tmp_path / "few", train=60, test=1)
    folder = run(run_config(dataset__path=str(data), num_server_rounds=1))
    accuracies = list(folder.rounds[1]["accuracy_per_client"].values())
    assert accuracies.count(None) == 2
    assert folder.rounds[1]["accuracy"] == next(a for a in accuracies if a is not None)


def test_a_long_round_says_how_far_it_is(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fednano_flwr.rounds.progress.SILENT_SECONDS", 0.5)
    run(run_config(round_timeout=2.0, num_server_rounds=0), gone=[2])
    said = capsys.readouterr().out
    assert re.search(
        r"round  0  evaluation: 2 of 3 clients done, [1-9]\d* steps, [\d.]+ a second; waiting for "
        r"node \d+ \(no step yet\)\n",
        said,
    ), said


def test_a_run_whose_clients_have_all_left_ends_instead_of_waiting_for_ever(
    run_config: Config,
) -> None:
    for messages in (3, 6):  # after round 0; after round 1's training
        with pytest.raises(TooFewClientsError, match=r"0 of 1 clients connected within 1 s"):
            config = run_config(round_timeout=1.0, run__name=f"left-{messages}")
            run(config, clients=3, leaves=messages)


def test_what_a_client_says_is_shown_in_full(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TooFewClientsError):
        run(run_config(dataset__path=str(tmp_path / "nowhere")))
    assert not (tmp_path / "runs").exists()  # nothing came of it, so nothing is left of it
    said = capsys.readouterr().out
    assert "there is no folder" in said and "<dataset.path>/problems.json" in said


def test_a_run_says_where_it_is_and_counts_what_its_metrics_say(
    run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Snapshot] = []
    healthy = progress.write

    def write(file: Path, found: Snapshot) -> None:
        healthy(file, found)
        if found != (read := snapshot.read(file)):
            pytest.fail(f"{found} was written, {read} is there")
        seen.append(found)

    introductions: list[str] = []
    answered = Dispatcher.answer

    def answer(self: Dispatcher, *arguments: Any) -> pb.Answer:
        found = answered(self, *arguments)
        if (kind := found.WhichOneof("what")) in ("describe", "register"):
            introductions.append(str(kind))
        return found

    monkeypatch.setattr(Dispatcher, "answer", answer)
    monkeypatch.setattr("fednano_flwr.rounds.progress.write", write)
    file = tmp_path / "progress.json"
    flat = run_config(exchange__kind="embeddings")  # no call only keeps features
    grid = LocalGrid(client_app.app, flat, 3)
    folder = server_app.federate(grid, 1, RunConfig.parse(flat), file)
    assert not file.exists()
    ends = [found for found in seen if found.done == 3]
    phases = [(0, "evaluation"), *((n, p) for n in (1, 2) for p in ("training", "evaluation"))]
    assert [(found.round, found.phase) for found in ends] == phases
    assert all((found.asked, found.failed, found.rounds) == (3, 0, 2) for found in seen)
    calls = sum(record["step_calls"] for record in folder.rounds)
    assert sum(found.steps for found in ends) == calls - len(introductions) > 0
    for found in ends:
        record = folder.rounds[found.round or 0]
        if found.phase == "evaluation":
            assert (found.accuracy, found.so_far) == (
                record["accuracy_by"]["all"]["accuracy"],
                True,
            )
        if record["train_loss"] is not None:
            assert found.loss == pytest.approx(record["train_loss"])
    left = [found.left for found in seen if found.round == 2 and found.left is not None]
    assert ends[2].left is None and 0 < max(left) <= folder.rounds[1]["seconds"]


def test_a_screen_that_cannot_be_told_does_not_end_the_run(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = run_config(num_server_rounds=0)
    grid = LocalGrid(client_app.app, flat, 3)
    gone = tmp_path / "gone" / "progress.json"
    folder = server_app.federate(grid, 1, RunConfig.parse(flat), gone)
    assert len(folder.rounds) == 1
    assert capsys.readouterr().out.count("progress is printed in lines from now on") == 1
