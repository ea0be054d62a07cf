"""The benchmarks run, on settings too small to mean anything. No timing is compared."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from benchmarks import (
    answers,
    full_model_client,
    host_flops,
    many_clients,
    merge_notes,
    overhead,
    overlap,
    split_step,
    step_traffic,
)
from benchmarks.models import SHAPES, put_model, write_llava
from benchmarks.report import in_turns, ratios, spread, table
from benchmarks.whole import WholeModel
from fednano_demo.generate import write_dataset
from fednano_flwr.adapters.site import build_adapters, named_trainable
from fednano_flwr.config import Adapter
from fednano_flwr.data.sample import Sample
from fednano_flwr.edge.encoder import load_encoder
from fednano_flwr.edge.nano_edge import NanoEdge
from fednano_flwr.edge.scoring import score_questions
from fednano_flwr.edge.training import TrainingPlan, train
from fednano_flwr.exchange.lowrank import LowRankExchange
from fednano_flwr.llm.host import FrozenLLM
from fednano_flwr.models.checkpoint import ModelCheckpoint
from fednano_flwr.models.edge_half import load_edge_half
from fednano_flwr.models.llm_half import load_llm_half

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = {"__init__", "crowd", "models", "report", "runs", "stub_half", "whole"}
SCRIPTS = {file.stem: file.stem for file in FOLDER.glob("*.py") if file.stem not in SHARED}
SCRIPTS |= {file.parent.name: f"{file.parent.name}.script" for file in FOLDER.glob("*/script.py")}


@pytest.fixture(autouse=True)
def threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_says_how_it_is_run_and_where_results_go(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{SCRIPTS[name]}")
    assert module.__doc__.splitlines()[2].startswith(f"    python -m benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--json FILE" in said and f"benchmarks/results/{name}.json" in said


def run(module: Any, out: Path, *arguments: str) -> dict[str, Any]:
    module.main([*arguments, "--json", str(out / "result.json")])
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert "json" not in record["setting"]
    return record


def test_step_traffic_of_a_narrow_model(tmp_path: Path) -> None:
    sizes = "--hidden-size 64 --rank 2 --batch 2 --image-tokens 9 --text-tokens 5".split()
    record = run(step_traffic, tmp_path, *sizes)
    # 2·N·d numbers of 2 bytes each way and step, and little else.
    plain = record["bytes_of_a_step"]["embeddings"]
    assert 2 * 2 * 28 * 64 < plain["first"] == plain["later"] < 1.2 * 2 * 2 * 28 * 64
    assert record["steady_ratio"] > record["ten_round_ratio"] > 1


def test_host_flops_of_one_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--small --layers 1 --repeats 1 --matmul 256 --image-tokens 9 --text-tokens 5".split()
    )
    record = run(host_flops, tmp_path, *arguments)
    shape = host_flops.SMALL
    layer = 4 * shape.width**2 + 3 * shape.width * shape.inner + 2 * shape.width
    assert record["layer_parameters"] == layer + shape.width
    assert record["tokens_a_step"] == 14
    assert record["ratio"] == max(one["median"] for one in record["ratios"].values()) > 0
    assert set(record["ratios"]) == {"embeddings", "lowrank"}
    assert "| lowrank |" in capsys.readouterr().out


def test_split_step_of_the_demo(tmp_path: Path) -> None:
    record = run(split_step, tmp_path, "--repeats", "1", "--batch", "2")
    assert set(record["median_ms"]) == {
        "whole model",
        "split, in-process, lowrank",
        "split, gRPC on loopback, lowrank",
        "split, gRPC on loopback, embeddings",
    }
    assert all(ratio["median"] > 0 for ratio in record["ratios"].values())


@pytest.mark.slow
def test_many_clients_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--clients 3 --processes 1 --repeats 1 --seconds 1 --warm-up 0.1".split()
    record = run(many_clients, tmp_path, *arguments)
    rates = record["steps_per_second"]
    both = rates["shared passes"]["median"] / rates["one request a pass"]["median"]
    assert record["ratio"]["median"] == pytest.approx(both)
    assert set(record["latency_ms"]) == {"3 clients", "1 client"}
    assert record["setting"]["batch_tokens"] == 3 * (9 + 12 + 3)  # room for all, not 0 as given
    assert "| shared passes |" in capsys.readouterr().out


@pytest.mark.slow
def test_answers_with_and_without_a_cache(tmp_path: Path) -> None:
    record = run(answers, tmp_path, *"--questions 3 --tokens 3 --repeats 1".split())
    assert set(record["exchanges"]) == {"embeddings", "lowrank"}
    for one in record["exchanges"].values():
        assert one["bytes_up"][answers.WHOLE] > 2 * one["bytes_up"][answers.CACHED] > 0
        slow, fast = (one["seconds"][way]["median"] for way in (answers.WHOLE, answers.CACHED))
        assert one["times_as_fast"]["median"] == pytest.approx(slow / fast)


@pytest.mark.slow
def test_overlap_of_a_stand_in_and_the_real_host(tmp_path: Path) -> None:
    arguments = "--questions 4 --host-ms 1 --repeats 1".split()
    record = run(overlap, tmp_path, *arguments)
    assert set(record["epochs"]) == {"stand-in, 1 ms", "real, another process"}
    for epochs in record["epochs"].values():
        assert set(epochs) == set(overlap.EPOCHS)
        for one in epochs.values():
            slow, fast = (one[way]["median"] for way in overlap.WAYS)
            assert one[overlap.TIMES]["median"] == pytest.approx(slow / fast)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model and some of the demo's questions."""
    folder = tmp_path_factory.mktemp("place")
    write_llava(folder / "model", SHAPES["tiny"])
    write_dataset(folder / "data", train=24, val=1, test=1)
    return folder


def test_a_model_that_is_named_takes_the_place_of_a_random_one(place: Path, tmp_path: Path) -> None:
    options = overhead.parse(["--model", str(place / "model")])
    size = put_model(options, tmp_path / "model")
    assert size == load_llm_half(str(tmp_path / "model")).size


SETTINGS = Adapter(rank=4, alpha=8.0, dropout=0.0, sites="image,text")


def test_the_unsplit_model_trains_and_scores_as_a_split_client_does(place: Path) -> None:
    model = str(place / "model")
    whole, half, encoder = (
        WholeModel(model),
        load_edge_half(model),
        load_encoder(ModelCheckpoint(model)),
    )
    host = FrozenLLM(load_llm_half(model))
    near = whole.edge(build_adapters(64, SETTINGS, seed=0), encoder)
    far = NanoEdge(half, half.token_table(), build_adapters(64, SETTINGS, seed=0), encoder)
    questions = full_model_client.read_questions(place / "data", encoder)
    assert {bool(question.sample.pictures) for question in questions} == {True, False}
    free = Sample("", "what color is it?", "all", "all", free_answer="red")
    questions += [encoder.encode(free), encoder.encode(replace(free, free_answer="blue"))]
    plan = TrainingPlan(2, 4, 0.01, 0.0, 1.0)
    ours = train(near, whole, questions, plan, seed=1)
    theirs = train(far, LowRankExchange(host), questions, plan, seed=1)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    for name, value in named_trainable(near.adapters).items():
        torch.testing.assert_close(value, named_trainable(far.adapters)[name], atol=1e-4, rtol=1e-3)
    ours, theirs = (
        score_questions(edge, llm, questions, 4)
        for edge, llm in ((near, whole), (far, LowRankExchange(host)))
    )
    assert [score.value for score in ours] == [score.value for score in theirs]
    losses = [[score.loss for score in scores] for scores in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_full_model_client_trains_lora_in_its_layers_and_nothing_else(place: Path) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=full_model_client.LAYERS)
    edge, whole = full_model_client.full_edge(place / "model", lora)
    trained = named_trainable(edge.adapters)
    assert {name.split(".")[-3] for name in trained} == {"q_proj", "v_proj"}
    assert sum(value.numel() for value in trained.values()) == 2 * 2 * 2 * 2 * 64
    questions = full_model_client.read_questions(place / "data", edge.encoder)
    result = train(edge, whole, questions, TrainingPlan(8, 4, 0.01, 0.0, 1.0), seed=0)
    again = train(edge, whole, questions, TrainingPlan(1, 4, 0.0, 0.0, 1.0), seed=0)
    assert again.loss < result.loss


def test_a_chain_is_as_long_as_its_busiest_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "cpus", lambda: 2)
    assert overhead.chain([3.0, 1.0, 1.0, 4.0]) == 6.0  # 3, then … beside 1 + 1 + 4
    assert overhead.chain([]) == 0.0


def test_variants_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    times = in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warm_up=1
    )
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_a_table_is_written_as_the_documents_write_theirs() -> None:
    assert table(["a", "b"], [(1, "x"), (2, "y")]) == "| a | b |\n|---|---|\n| 1 | x |\n| 2 | y |"


def test_notes_of_merges_are_means_over_an_experiments_runs_at_one_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    residual, scale = "residual base_model.model.image_adapter", "fisher scale"
    # (experiment, alpha, seed): residuals by round. Two experiments may be of one strategy.
    found = {
        ("exact", 0.1, 0): [0.01, 0.02],
        ("exact", 0.1, 1): [0.02, 0.03],
        ("exact", 1.0, 0): [0.5, 0.5],
        ("exact-balanced", 0.1, 0): [0.03, 0.04],
    }
    lines = ["experiment,dataset.alpha,seed,folder"]
    for number, ((name, alpha, seed), residuals) in enumerate(found.items()):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        scales = [float("inf"), 2.0 + seed]
        merges = [{}, *({residual: r, scale: s} for r, s in zip(residuals, scales, strict=True))]
        records = [json.dumps({"round": k, "merge": merge}) for k, merge in enumerate(merges)]
        (folder / "metrics.jsonl").write_text("\n".join(records))
        lines.append(f"{name},{alpha},{seed},{folder.name}")
    comparison = tmp_path / "demo"
    comparison.mkdir()
    (comparison / "runs.csv").write_text("\n".join(lines))
    labels = [{"label": f"alpha={a:g}", "values": {"dataset.alpha": a}} for a in (0.1, 1.0)]
    (comparison / "results.json").write_text(json.dumps({"settings": labels}))
    asked = ["--comparison", str(comparison)]
    with pytest.raises(SystemExit):
        run(merge_notes, tmp_path, *asked)
    assert "--setting None: give one of alpha=0.1; alpha=1" in capsys.readouterr().err
    picture = tmp_path / "notes.png"
    asked += ["--setting", "alpha=0.1", "--picture", str(picture)]
    rows = {
        (row["experiment"], row["what"]): row
        for row in run(merge_notes, tmp_path, *asked)["merges"]
    }
    assert picture.read_bytes().startswith(b"\x89PNG")
    row = rows["exact", "residual, image, %"]
    assert row["runs"] == 2 and row["by_round"] == pytest.approx([1.5, 2.5])
    assert (row["least"], row["most"]) == pytest.approx((1.0, 3.0))
    assert rows["exact-balanced", "residual, image, %"]["by_round"] == pytest.approx([3.0, 4.0])
    scales_of_exact = rows["exact", "largest client's Fisher against the smallest's"]
    assert scales_of_exact["by_round"] == [None, 2.5]
